"""Models of the examples for `--tiny`: on the CPU, offline, in seconds.

This is the bundled model if it fits, which generates coloured shapes of 64 by 64 pixels, and otherwise a model with
random weights, which generates noise.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionImg2ImgPipeline
from PIL import Image, ImageDraw
from torch import nn

from DeepCache.models import load_pipeline

PROMPT = "a red circle left of a blue square"


def stable_diffusion() -> Any:
    return load_pipeline("shapes", device="cpu")


def stable_diffusion_xl() -> Any:
    return load_pipeline("sdxl-tiny", device="cpu")


def stable_video_diffusion() -> Any:
    return load_pipeline("svd-tiny", device="cpu")


def image_to_image() -> Any:
    return StableDiffusionImg2ImgPipeline(**stable_diffusion().components, requires_safety_checker=False)


def controlnet() -> Any:
    """With an untrained ControlNet, whose residuals are zero."""
    components = stable_diffusion().components
    # Two of its layers downsample the outlines like the VAE: four pixels per latent.
    untrained = ControlNetModel.from_unet(components["unet"], conditioning_embedding_out_channels=(16, 32, 64))
    return StableDiffusionControlNetPipeline(**components, controlnet=untrained.eval(), requires_safety_checker=False)


def lora(unet: nn.Module, rank: int = 4) -> dict[str, torch.Tensor]:
    """A LoRA with random weights for the attention layers, in the published format."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, layer in unet.named_modules():
        if name.endswith(("to_q", "to_v")):
            width_out, width_in = layer.weight.shape
            weights[f"unet.{name}.lora_A.weight"] = 0.1 * torch.randn(rank, width_in, generator=generator)
            weights[f"unet.{name}.lora_B.weight"] = 0.1 * torch.randn(width_out, rank, generator=generator)
    return weights


def sketch() -> Image.Image:
    """An initial image."""
    image = Image.new("RGB", (64, 64), "#d8d8d8")
    pen = ImageDraw.Draw(image)
    pen.ellipse((8, 20, 30, 42), fill="#d03030")
    pen.rectangle((36, 20, 56, 42), fill="#3050c0")
    return image
