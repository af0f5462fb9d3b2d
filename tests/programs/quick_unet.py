"""A minimal U-Net with cross-attention on the up path, where shallow steps run."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel

from tests.engine.tiny_pipeline import generate, tiny_pipeline
from tests.programs.by_hand import scheduled

__all__ = ["by_hand", "quick_pipeline", "quick_unet"]


def quick_unet(seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        mid_block_type="UNetMidBlock2D",
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def quick_pipeline(unet=None):
    """The pipeline of Stable Diffusion with a quick U-Net."""
    return tiny_pipeline(quick_unet() if unet is None else unet)


def by_hand(pipe, pattern="F..F..", **call):
    """The latents that the pipeline must generate with DeepCache, computed without it."""
    other = quick_pipeline(scheduled(pipe.unet, pattern))
    other.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    return generate(other, **call)
