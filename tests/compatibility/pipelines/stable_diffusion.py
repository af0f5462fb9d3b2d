"""Stable Diffusion 1 and 2: text, image and mask to image."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests.compatibility.case import PipelineCase, RefusedCase, uniform
from tests.compatibility.components import (
    clip_text_encoder,
    clip_tokenizer,
    ddim,
    generator,
    image,
    quiet,
    stable_diffusion_unet,
    vae,
)

__all__ = ["CASES", "REFUSED"]


def _build(name: str, **components: Any) -> Any:
    return quiet(
        getattr(diffusers, name)(
            **{
                "vae": vae(),
                "text_encoder": clip_text_encoder(),
                "tokenizer": clip_tokenizer(),
                "unet": stable_diffusion_unet(),
                "scheduler": ddim(),
                "safety_checker": None,
                "feature_extractor": None,
                "requires_safety_checker": False,
            }
            | components
        )
    )


def _run(pipe: Any, steps: int = 5, **call: Any) -> torch.Tensor:
    return pipe(
        **{
            "prompt": "a red circle",
            "num_inference_steps": steps,
            "generator": generator(),
            "output_type": "latent",
        }
        | call
    ).images


def _run_text(pipe: Any, **call: Any) -> torch.Tensor:
    return _run(pipe, **{"height": 64, "width": 64} | call)


CASES = [
    PipelineCase(
        "StableDiffusionPipeline",
        build=lambda: _build("StableDiffusionPipeline"),
        run=_run_text,
        run_other=lambda pipe: _run_text(pipe, width=128, num_images_per_prompt=2, guidance_scale=1.0),
        patterns=uniform(5),
    ),
    PipelineCase(
        "StableDiffusionImg2ImgPipeline",
        build=lambda: _build("StableDiffusionImg2ImgPipeline"),
        run=lambda pipe: _run(pipe, image=image(), strength=0.8),
        run_other=lambda pipe: _run(pipe, image=image(), strength=0.4),
        patterns=uniform(4),
        note="the steps that `strength` leaves out are not counted: the first that runs is full",
    ),
]

REFUSED: list[RefusedCase] = []
