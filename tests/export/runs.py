"""Calls of the tiny pipeline."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel

STEPS = 7


def CALL(batch=1, size=64, **others):
    """Arguments of the tiny pipeline for deterministic latents."""
    prompt, negative = torch.randn(2, batch, 3, 8, generator=torch.Generator().manual_seed(1))
    call = {
        "prompt_embeds": prompt,
        "negative_prompt_embeds": negative,
        "num_inference_steps": STEPS,
        "height": size,
        "width": size,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
    }
    return call | others


def latents(pipe, **others):
    return pipe(**CALL(**others)).images


def least_unet():
    """As few layers as possible: each takes time to trace."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type="UNetMidBlock2D",
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=8,
        norm_num_groups=4,
    ).eval()
