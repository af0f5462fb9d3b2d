"""As small a U-Net as there can be with attention to a prompt on the way up, where a shallow step still runs."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel

from tests.engine.tiny_pipeline import tiny_pipeline

__all__ = ["quick_pipeline", "quick_unet"]


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
    """Stable Diffusion's pipeline with it."""
    return tiny_pipeline(quick_unet() if unet is None else unet)
