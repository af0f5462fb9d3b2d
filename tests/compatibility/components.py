"""Tiny random components that the pipelines of the compatibility tests are made of.

A U-Net has the blocks and the layers of the published one, so that its branches are those a user sees; only its widths
are small. What no test changes (text encoders, autoencoders, tokenizers) is made once and shared.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from DeepCache.models import MODELS

__all__ = [
    "TEXT_WIDTH",
    "clip_text_encoder",
    "clip_tokenizer",
    "ddim",
    "generator",
    "image",
    "quiet",
    "seeded",
    "stable_diffusion_unet",
    "vae",
]

TEXT_WIDTH = 8
SHAPES = MODELS["shapes"].folder
_Module = TypeVar("_Module", bound=nn.Module)


def seeded(build: Callable[[], _Module], seed: int = 0) -> _Module:
    """A module with the weights of a seed and no layer at zero, ready for inference."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build().eval().requires_grad_(False)
        for parameter in module.parameters():
            # Layers that start at zero would hide whatever goes wrong in them.
            if not parameter.any():
                parameter.normal_(std=0.1)
    return module


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(seed: int = 0, size: int = 64, batch: int = 1) -> torch.Tensor:
    """A random image of values from 0 to 1."""
    return torch.rand(batch, 3, size, size, generator=generator(seed))


def quiet(pipe: Any) -> Any:
    """The pipeline without its progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion_unet(**config: Any) -> UNet2DConditionModel:
    """The blocks of Stable Diffusion's U-Net, narrow."""
    return seeded(
        lambda: UNet2DConditionModel(
            **{
                "sample_size": 8,
                "block_out_channels": (8, 16, 16, 16),
                "norm_num_groups": 4,
                "cross_attention_dim": TEXT_WIDTH,
                "attention_head_dim": 2,
            }
            | config
        )
    )


@cache
def vae() -> AutoencoderKL:
    """Four latent channels, eight pixels a latent as in Stable Diffusion."""
    return seeded(
        lambda: AutoencoderKL(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=2,
            latent_channels=4,
        )
    )


@cache
def clip_tokenizer() -> CLIPTokenizer:
    """The tokenizer of the model that the package ships."""
    return CLIPTokenizer.from_pretrained(SHAPES / "tokenizer")


@cache
def clip_text_encoder() -> CLIPTextModel:
    tokenizer = clip_tokenizer()
    return seeded(
        lambda: CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=TEXT_WIDTH,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    )


def ddim() -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, clip_sample=False, set_alpha_to_one=False)
