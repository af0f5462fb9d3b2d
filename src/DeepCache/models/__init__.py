"""Loads and describes pipelines: bundled models, architectures, folders, checkpoints and hub repositories."""

from DeepCache.models.adapters import Lora, load_controlnet, load_embeddings, load_loras
from DeepCache.models.architectures import ARCHITECTURES, Architecture, random_pipeline
from DeepCache.models.configurations import CONFIGURATIONS
from DeepCache.models.description import (
    BranchDescription,
    ModelDescription,
    describe_pipeline,
    limit_speed_up,
)
from DeepCache.models.device import resolve_device
from DeepCache.models.loading import load_pipeline, recommended_guidance
from DeepCache.models.memory import OFFLOADS, divide_vae, offload_pipeline
from DeepCache.models.registry import MODELS, NamedModel
from DeepCache.models.schedulers import SCHEDULER_ALIASES, set_scheduler
from DeepCache.models.without_weights import load_without_weights

__all__ = [
    "ARCHITECTURES",
    "CONFIGURATIONS",
    "MODELS",
    "OFFLOADS",
    "SCHEDULER_ALIASES",
    "Architecture",
    "BranchDescription",
    "Lora",
    "ModelDescription",
    "NamedModel",
    "describe_pipeline",
    "divide_vae",
    "limit_speed_up",
    "load_controlnet",
    "load_embeddings",
    "load_loras",
    "load_pipeline",
    "load_without_weights",
    "offload_pipeline",
    "random_pipeline",
    "recommended_guidance",
    "resolve_device",
    "set_scheduler",
]
