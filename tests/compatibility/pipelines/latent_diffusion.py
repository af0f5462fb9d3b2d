"""The latent diffusion models that came before Stable Diffusion."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import torch
from diffusers import UNet2DModel, VQModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

from tests.compatibility.case import PipelineCase, RefusedCase, uniform
from tests.compatibility.components import (
    TEXT_WIDTH,
    clip_tokenizer,
    ddim,
    generator,
    image,
    quiet,
    seeded,
    stable_diffusion_unet,
    unconditional_unet,
    vae,
)

__all__ = ["CASES", "REFUSED"]


def _unet(**config: Any) -> UNet2DModel:
    """The blocks of the models that make faces and that enlarge images."""
    return unconditional_unet(
        down_block_types=("DownBlock2D",) + ("AttnDownBlock2D",) * 3,
        up_block_types=("AttnUpBlock2D",) * 3 + ("UpBlock2D",),
        **config,
    )


@cache
def _vqvae() -> VQModel:
    return seeded(lambda: VQModel(block_out_channels=(4,), norm_num_groups=2, num_vq_embeddings=64))


@cache
def _bert() -> LDMBertModel:
    return seeded(
        lambda: LDMBertModel(
            LDMBertConfig(
                vocab_size=len(clip_tokenizer()),
                encoder_layers=1,
                encoder_ffn_dim=16,
                encoder_attention_heads=2,
                head_dim=4,
                d_model=TEXT_WIDTH,
            )
        )
    )


def _build(name: str, **components: Any) -> Any:
    return quiet(getattr(diffusers, name)(**{"vqvae": _vqvae(), "scheduler": ddim()} | components))


def _build_text_to_image() -> Any:
    return _build(
        "LDMTextToImagePipeline", vqvae=vae(), bert=_bert(), tokenizer=clip_tokenizer(), unet=stable_diffusion_unet()
    )


def _run(pipe: Any, steps: int = 5, **call: Any) -> torch.Tensor:
    return torch.from_numpy(
        pipe(**{"num_inference_steps": steps, "generator": generator(), "output_type": "np"} | call).images
    )


def _run_text(pipe: Any, **call: Any) -> torch.Tensor:
    return _run(pipe, **{"prompt": "a red circle", "height": 64, "width": 64} | call)


CASES = [
    PipelineCase(
        "LDMPipeline",
        build=lambda: _build("LDMPipeline", unet=_unet()),
        run=_run,
        run_other=lambda pipe: _run(pipe, 4, batch_size=2),
        patterns=uniform(5),
    ),
    PipelineCase(
        "LDMTextToImagePipeline",
        build=_build_text_to_image,
        run=lambda pipe: _run_text(pipe, guidance_scale=6.0),
        run_other=lambda pipe: _run_text(pipe, width=128),
        patterns=uniform(5),
    ),
    PipelineCase(
        "LDMSuperResolutionPipeline",
        build=lambda: _build("LDMSuperResolutionPipeline", unet=_unet(in_channels=6)),
        run=lambda pipe: _run(pipe, image=image(size=16)),
        run_other=lambda pipe: _run(pipe, 4, image=image(size=24, batch=2)),
        patterns=uniform(5),
    ),
]

REFUSED: list[RefusedCase] = []
