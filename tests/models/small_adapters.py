"""A LoRA and a textual inversion for the bundled model, with random weights, saved to files."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from DeepCache.models import load_pipeline

__all__ = ["save_embedding", "save_lora"]


def save_lora(folder: Path, seed: int = 0) -> Path:
    """Saves a LoRA and returns its file."""
    pipe = load_pipeline("shapes", device="cpu")
    torch.manual_seed(seed)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    type(pipe).save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    return next(folder.glob("*.safetensors"))


def save_embedding(path: Path, value: float = 0.5) -> Path:
    """Saves a textual inversion of one vector to a file, whose name is the word."""
    features = load_pipeline("shapes", device="cpu").text_encoder.config.hidden_size
    save_file({"<mine>": torch.full((1, features), value)}, path)
    return path
