"""Versatile Diffusion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import PIL.Image
import torch
from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel
from transformers import CLIPImageProcessor

from tests.compatibility.case import BrokenCase, PipelineCase, RefusedCase, uniform
from tests.compatibility.components import (
    TEXT_WIDTH,
    clip_image_encoder,
    clip_tokenizer,
    ddim,
    generator,
    projecting_text_encoder,
    quiet,
    seeded,
    stable_diffusion_unet,
    vae,
)

__all__ = ["BROKEN", "CASES", "REFUSED"]

_TEXT = {"prompt": "a red circle"}
_IMAGE = {"image": PIL.Image.new("RGB", (32, 32), "red")}


def _text_unet() -> UNetFlatConditionModel:
    """Lends its transformer blocks to the U-Net for images, and is never called itself."""
    return seeded(
        lambda: UNetFlatConditionModel(
            in_channels=8,
            out_channels=8,
            block_out_channels=(8, 16, 16, 16),
            norm_num_groups=4,
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=2,
        ),
        seed=1,
    )


def _build(name: str, *, text: bool, image: bool) -> Any:
    components: dict[str, Any] = {"image_unet": stable_diffusion_unet(), "vae": vae(), "scheduler": ddim()}
    if text:
        components |= {"tokenizer": clip_tokenizer(), "text_encoder": projecting_text_encoder()}
        components |= {"text_unet": _text_unet()}
    if image:
        processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        components |= {"image_feature_extractor": processor, "image_encoder": clip_image_encoder()}
    return quiet(getattr(diffusers, name)(**components))


def _without_text_unet(pipe: Any) -> Any:
    """The pipeline as its documentation says to use it."""
    pipe.remove_unused_weights()
    return pipe


def _run(call: Callable[..., Any], **arguments: Any) -> torch.Tensor:
    return call(**{"num_inference_steps": 5} | arguments, generator=generator(), output_type="latent").images


def _all() -> Any:
    return _build("VersatileDiffusionPipeline", text=True, image=True)


_NOTE = (
    "the U-Net for images is cached; the one for text provides transformer blocks to it; "
    "`dual_guided` fails in diffusers 0.42.1, without DeepCache too"
)
_PATTERNS = {"image_unet": uniform(5)}

CASES = [
    PipelineCase(
        "VersatileDiffusionPipeline",
        build=_all,
        run=lambda pipe: _run(pipe.text_to_image, **_TEXT),
        run_other=lambda pipe: _run(pipe.image_variation, **_IMAGE),
        patterns=_PATTERNS,
        note=_NOTE,
        id="text_to_image",
    ),
    PipelineCase(
        "VersatileDiffusionPipeline",
        build=_all,
        run=lambda pipe: _run(pipe.image_variation, **_IMAGE),
        run_other=lambda pipe: _run(pipe.text_to_image, **_TEXT),
        patterns=_PATTERNS,
        note=_NOTE,
        id="image_variation",
    ),
    PipelineCase(
        "VersatileDiffusionImageVariationPipeline",
        build=lambda: _build("VersatileDiffusionImageVariationPipeline", text=False, image=True),
        run=lambda pipe: _run(pipe, **_IMAGE),
        run_other=lambda pipe: _run(pipe, **_IMAGE, width=128, guidance_scale=1.0),
        patterns=_PATTERNS,
    ),
    PipelineCase(
        "VersatileDiffusionTextToImagePipeline",
        build=lambda: _without_text_unet(_build("VersatileDiffusionTextToImagePipeline", text=True, image=False)),
        run=lambda pipe: _run(pipe, **_TEXT),
        run_other=lambda pipe: _run(pipe, **_TEXT, width=128, num_images_per_prompt=2),
        patterns=_PATTERNS,
    ),
]

REFUSED: list[RefusedCase] = []

BROKEN = (
    BrokenCase(
        "VersatileDiffusionDualGuidedPipeline",
        build=lambda: _build("VersatileDiffusionDualGuidedPipeline", text=True, image=True),
        run=lambda pipe: _run(pipe, **_TEXT, **_IMAGE),
        error="encoder_attention_mask",
        why="its transformer blocks do not accept an argument that the U-Net blocks pass to them",
    ),
)
