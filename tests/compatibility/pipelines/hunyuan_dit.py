"""HunyuanDiT, a transformer with long skips."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler, HunyuanDiT2DControlNetModel, HunyuanDiT2DModel
from transformers import BertConfig, BertModel

from tests.compatibility.case import PipelineCase, RefusedCase, uniform
from tests.compatibility.components import (
    TEXT_WIDTH,
    clip_tokenizer,
    denoise,
    image,
    quiet,
    seeded,
    t5_encoder,
    vae,
)

__all__ = ["CASES", "REFUSED"]

_LAYERS = 10
_WIDTHS: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "hidden_size": 16,
    "in_channels": 4,
    "patch_size": 2,
    "sample_size": 8,
    "mlp_ratio": 2.0,
    "cross_attention_dim": TEXT_WIDTH,
    "cross_attention_dim_t5": TEXT_WIDTH,
    "pooled_projection_dim": TEXT_WIDTH,
}


@cache
def _text_encoder() -> BertModel:
    return seeded(
        lambda: BertModel(
            BertConfig(
                vocab_size=len(clip_tokenizer()),
                hidden_size=TEXT_WIDTH,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
            )
        )
    )


def _build(name: str, **components: Any) -> Any:
    return quiet(
        getattr(diffusers, name)(
            vae=vae(),
            text_encoder=_text_encoder(),
            tokenizer=clip_tokenizer(),
            text_encoder_2=t5_encoder(),
            tokenizer_2=clip_tokenizer(),
            transformer=seeded(lambda: HunyuanDiT2DModel(num_layers=_LAYERS, **_WIDTHS)),
            scheduler=DDPMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction", steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **components,
        )
    )


def _controlnet() -> HunyuanDiT2DControlNetModel:
    """Its residuals are not at zero."""
    return seeded(lambda: HunyuanDiT2DControlNetModel(transformer_num_layers=_LAYERS, **_WIDTHS), seed=2)


def _run(pipe: Any, **call: Any) -> torch.Tensor:
    return denoise(pipe, **{"height": 64, "width": 64, "use_resolution_binning": False} | call)


def _run_controlled(pipe: Any, **call: Any) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]):
        # The pipeline samples the latents of the image without the generator.
        torch.manual_seed(0)
        return _run(pipe, control_image=image(), **call)


_PATTERNS = {"transformer": uniform(5)}
_PUBLISHED = "the published models have 40 layers and branches 0–18"

CASES = [
    PipelineCase(
        "HunyuanDiTPipeline",
        build=lambda: _build("HunyuanDiTPipeline"),
        run=_run,
        run_other=lambda pipe: _run(pipe, width=128, num_images_per_prompt=2, guidance_scale=1.0),
        patterns=_PATTERNS,
        note=_PUBLISHED,
    ),
    PipelineCase(
        "HunyuanDiTControlNetPipeline",
        build=lambda: _build("HunyuanDiTControlNetPipeline", controlnet=_controlnet()),
        run=_run_controlled,
        run_other=lambda pipe: _run_controlled(pipe, steps=3, controlnet_conditioning_scale=0.5),
        patterns=_PATTERNS,
        note=_PUBLISHED,
    ),
    PipelineCase(
        "HunyuanDiTPAGPipeline",
        build=lambda: _build("HunyuanDiTPAGPipeline"),
        run=_run,
        run_other=lambda pipe: _run(pipe, width=128, pag_scale=0.0),
        patterns=_PATTERNS,
        note=_PUBLISHED,
    ),
]

REFUSED: list[RefusedCase] = []
