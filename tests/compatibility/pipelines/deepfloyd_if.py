"""DeepFloyd IF."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from tests.compatibility.case import PipelineCase, RefusedCase, uniform
from tests.compatibility.components import TEXT_WIDTH, generator, image, mask, quiet, stable_diffusion_unet

__all__ = ["CASES", "REFUSED"]

_SIZE = 16


def _unet(**config: Any) -> UNet2DConditionModel:
    """The blocks of the first stage, narrow."""
    return stable_diffusion_unet(
        **{
            "sample_size": _SIZE,
            "in_channels": 3,
            "out_channels": 6,
            "layers_per_block": 3,
            "down_block_types": ("ResnetDownsampleBlock2D",) + ("SimpleCrossAttnDownBlock2D",) * 3,
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "up_block_types": ("SimpleCrossAttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",),
            "only_cross_attention": True,
            "cross_attention_norm": "group_norm",
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "encoder_hid_dim": TEXT_WIDTH,
            "encoder_hid_dim_type": "text_proj",
            "addition_embed_type": "text",
            "addition_embed_type_num_heads": 2,
            "resnet_time_scale_shift": "scale_shift",
            "resnet_skip_time_act": True,
            "resnet_out_scale_factor": 1.4142,
            "mid_block_scale_factor": 1.4142,
            "act_fn": "gelu",
        }
        | config
    )


def _super_resolution_unet() -> UNet2DConditionModel:
    """A U-Net of the second stage: it sees the small image too, and its deeper blocks have more layers."""
    return _unet(in_channels=6, layers_per_block=(1, 2, 3, 3), class_embed_type="timestep")


def _scheduler() -> DDPMScheduler:
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range")


def _build(name: str, **components: Any) -> Any:
    return quiet(
        getattr(diffusers, name)(
            **{
                "tokenizer": None,
                "text_encoder": None,
                "unet": _unet(),
                "scheduler": _scheduler(),
                "safety_checker": None,
                "feature_extractor": None,
                "watermarker": None,
                "requires_safety_checker": False,
            }
            | components
        )
    )


def _build_super_resolution(name: str) -> Any:
    return _build(name, unet=_super_resolution_unet(), image_noising_scheduler=_scheduler())


@cache
def _prompt_embeds(seed: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(1, 6, TEXT_WIDTH, generator=generator(seed)).repeat(batch, 1, 1)


def _run(pipe: Any, steps: int = 5, **call: Any) -> torch.Tensor:
    return pipe(
        **{
            "prompt_embeds": _prompt_embeds(0),
            "negative_prompt_embeds": _prompt_embeds(1),
            "num_inference_steps": steps,
            "generator": generator(),
            "output_type": "pt",
        }
        | call
    ).images


def _upscale(pipe: Any, **call: Any) -> torch.Tensor:
    return _run(pipe, image=image(1, size=_SIZE // 4), **call)


def _image() -> torch.Tensor:
    return image(size=_SIZE)


CASES = [
    PipelineCase(
        "IFPipeline",
        build=lambda: _build("IFPipeline"),
        run=_run,
        run_other=lambda pipe: _run(pipe, width=2 * _SIZE, num_images_per_prompt=2, guidance_scale=1.0),
        patterns=uniform(5),
        note="each stage is a separate pipeline and needs its own helper",
    ),
    PipelineCase(
        "IFImg2ImgPipeline",
        build=lambda: _build("IFImg2ImgPipeline"),
        run=lambda pipe: _run(pipe, image=_image(), strength=0.8),
        run_other=lambda pipe: _run(pipe, image=_image(), strength=0.4),
        patterns=uniform(4),
    ),
    PipelineCase(
        "IFInpaintingPipeline",
        build=lambda: _build("IFInpaintingPipeline"),
        run=lambda pipe: _run(pipe, image=_image(), mask_image=mask(_SIZE), strength=0.8),
        run_other=lambda pipe: _run(pipe, image=_image(), mask_image=mask(_SIZE), guidance_scale=1.0),
        patterns=uniform(4),
    ),
    PipelineCase(
        "IFSuperResolutionPipeline",
        build=lambda: _build_super_resolution("IFSuperResolutionPipeline"),
        run=_upscale,
        run_other=lambda pipe: _upscale(pipe, noise_level=100, num_images_per_prompt=2),
        patterns=uniform(5),
    ),
    PipelineCase(
        "IFImg2ImgSuperResolutionPipeline",
        build=lambda: _build_super_resolution("IFImg2ImgSuperResolutionPipeline"),
        run=lambda pipe: _upscale(pipe, original_image=_image(), strength=0.8),
        run_other=lambda pipe: _upscale(pipe, original_image=_image(), strength=0.4),
        patterns=uniform(4),
    ),
    PipelineCase(
        "IFInpaintingSuperResolutionPipeline",
        build=lambda: _build_super_resolution("IFInpaintingSuperResolutionPipeline"),
        run=lambda pipe: _upscale(pipe, original_image=_image(), mask_image=mask(_SIZE), strength=0.8),
        run_other=lambda pipe: _upscale(pipe, original_image=_image(), mask_image=mask(_SIZE), guidance_scale=1.0),
        patterns=uniform(4),
    ),
]

REFUSED: list[RefusedCase] = []
