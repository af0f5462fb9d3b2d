"""Small autoencoders with random weights, saved to folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

__all__ = ["save_kl", "save_tiny"]

# The latents of the bundled model are a quarter as wide as its images.
LEVELS = 3


def save_tiny(folder: Path, levels: int = LEVELS, **options: Any) -> AutoencoderTiny:
    """Saves an `AutoencoderTiny` that fits the bundled model, where nothing else is asked for."""
    torch.manual_seed(1)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8,) * levels,
        decoder_block_out_channels=(8,) * levels,
        num_encoder_blocks=(1,) * levels,
        num_decoder_blocks=(1,) * levels,
        **options,
    ).eval()
    vae.save_pretrained(folder)
    return vae


def save_kl(folder: Path, levels: int = LEVELS, **options: Any) -> AutoencoderKL:
    """Saves an `AutoencoderKL` that fits the bundled model, where nothing else is asked for."""
    torch.manual_seed(2)
    vae = AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=4,
        **options,
    ).eval()
    vae.save_pretrained(folder)
    return vae
