"""Some of the pipelines whose transformer has no skip connections from its first layers to its last."""

from __future__ import annotations

from typing import Any

from diffusers import FluxTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel, UVit2DModel

from tests.compatibility.case import PipelineCase
from tests.compatibility.components import TEXT_WIDTH, refused, seeded

__all__ = ["CASES", "REFUSED"]

_WIDTHS: dict[str, Any] = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4}


def _flux() -> FluxTransformer2DModel:
    return seeded(
        lambda: FluxTransformer2DModel(
            num_single_layers=2,
            joint_attention_dim=TEXT_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            axes_dims_rope=(2, 2, 4),
            **_WIDTHS,
        )
    )


def _stable_diffusion_3() -> SD3Transformer2DModel:
    return seeded(
        lambda: SD3Transformer2DModel(
            sample_size=8,
            joint_attention_dim=TEXT_WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=TEXT_WIDTH,
            **_WIDTHS,
        )
    )


def _pixart() -> PixArtTransformer2DModel:
    return seeded(
        lambda: PixArtTransformer2DModel(
            sample_size=8,
            cross_attention_dim=16,
            caption_channels=TEXT_WIDTH,
            use_additional_conditions=False,
            **_WIDTHS,
        )
    )


def _amused() -> UVit2DModel:
    return seeded(
        lambda: UVit2DModel(
            hidden_size=16,
            cond_embed_dim=8,
            micro_cond_encode_dim=2,
            micro_cond_embed_dim=10,
            encoder_hidden_size=TEXT_WIDTH,
            vocab_size=32,
            codebook_size=32,
            block_out_channels=16,
            in_channels=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            block_num_heads=2,
            intermediate_size=16,
            sample_size=8,
        )
    )


CASES: list[PipelineCase] = []

REFUSED = [
    refused(
        name,
        "For other transformers use diffusers' own caches (enable_cache)",
        note,
        transformer=transformer,
    )
    for name, transformer, note in (
        ("FluxPipeline", _flux, "its transformer has no long skips"),
        ("StableDiffusion3Pipeline", _stable_diffusion_3, "its transformer has no long skips"),
        ("PixArtAlphaPipeline", _pixart, "its transformer has no long skips"),
        ("AmusedPipeline", _amused, "its U-ViT has one block on the way down and one on the way up, and no long skips"),
    )
]
