"""DreamLite."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderTiny, DreamLiteUNetModel, FlowMatchEulerDiscreteScheduler
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tests.compatibility.case import PipelineCase, RefusedCase, uniform
from tests.compatibility.components import TEXT_WIDTH, clip_tokenizer, denoise, quiet, seeded

__all__ = ["CASES", "REFUSED"]


def _unet() -> DreamLiteUNetModel:
    return seeded(
        lambda: DreamLiteUNetModel(
            block_out_channels=(8, 16, 16),
            norm_num_groups=4,
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=2,
            ff_mult=2,
            encoder_hid_dim=TEXT_WIDTH,
            encoder_hid_dim_type="text_proj_rms",
            addition_embed_type="time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=2 * 4,
        )
    )


@cache
def _text_encoder(dtype: torch.dtype) -> Qwen3VLForConditionalGeneration:
    text = {
        "vocab_size": len(clip_tokenizer()),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": TEXT_WIDTH,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
    }
    vision = {
        "depth": 1,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_heads": 1,
        "out_hidden_size": TEXT_WIDTH,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLConfig(text_config=text, vision_config=vision)
    return seeded(lambda: Qwen3VLForConditionalGeneration(config)).to(dtype)


@cache
def _vae() -> AutoencoderTiny:
    channels = (4, 4, 4, 4)
    return seeded(
        lambda: AutoencoderTiny(
            encoder_block_out_channels=channels,
            decoder_block_out_channels=channels,
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
        )
    )


def _build(name: str, dtype: torch.dtype = torch.float32) -> Any:
    return quiet(
        getattr(diffusers, name)(
            text_encoder=_text_encoder(dtype),
            tokenizer=clip_tokenizer(),
            processor=None,
            vae=_vae(),
            unet=_unet().to(dtype),
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        )
    )


def _run(pipe: Any, steps: int = 5, **call: Any) -> torch.Tensor:
    return denoise(pipe, steps, **{"height": 64, "width": 64} | call)


def _case(name: str, dtype: torch.dtype = torch.float32, **case: Any) -> PipelineCase:
    return PipelineCase(
        name,
        build=lambda: _build(name, dtype),
        run=_run,
        run_other=lambda pipe: _run(pipe, 4, width=128),
        patterns=uniform(5),
        **case,
    )


CASES = [
    _case("DreamLitePipeline"),
    # In half precision the U-Net is given a rounded copy of the timestep.
    _case("DreamLitePipeline", torch.bfloat16, id="bfloat16"),
    _case("DreamLiteMobilePipeline", note="made for four steps, so every cached step matters"),
]

REFUSED: list[RefusedCase] = []
