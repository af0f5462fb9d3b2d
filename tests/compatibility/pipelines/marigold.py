"""Marigold: depth, normals and intrinsic images."""

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


def _build(name: str, prediction: str, targets: int = 1) -> Any:
    """The U-Net sees the latent of the image beside one latent for each of its targets."""
    latents = vae().config.latent_channels
    return quiet(
        getattr(diffusers, name)(
            unet=stable_diffusion_unet(in_channels=(1 + targets) * latents, out_channels=targets * latents),
            vae=vae(),
            scheduler=ddim(),
            text_encoder=clip_text_encoder(),
            tokenizer=clip_tokenizer(),
            prediction_type=prediction,
            default_processing_resolution=0,
        )
    )


def _run(pipe: Any, steps: int = 5, **call: Any) -> torch.Tensor:
    return pipe(
        **{"image": image(), "num_inference_steps": steps, "generator": generator(), "output_latent": True} | call
    ).latent


def _run_ensemble(pipe: Any) -> torch.Tensor:
    return _run(pipe, 4, ensemble_size=4, batch_size=2)


# Every batch of an ensemble is a denoising run.
_FOUR_STEPS_TWICE = {interval: 2 * pattern for interval, pattern in uniform(4).items()}

CASES = [
    PipelineCase(
        "MarigoldDepthPipeline",
        build=lambda: _build("MarigoldDepthPipeline", "depth"),
        run=_run,
        run_other=lambda pipe: _run(pipe, 4, image=image(size=128), processing_resolution=96),
        patterns=uniform(5),
    ),
    PipelineCase(
        "MarigoldDepthPipeline",
        build=lambda: _build("MarigoldDepthPipeline", "depth"),
        run=_run_ensemble,
        run_other=lambda pipe: _run(pipe, image=image(batch=3), batch_size=2),
        patterns=_FOUR_STEPS_TWICE,
        note="each batch of an ensemble or of several images starts with a full step",
        id="ensemble",
    ),
    PipelineCase(
        "MarigoldNormalsPipeline",
        build=lambda: _build("MarigoldNormalsPipeline", "normals"),
        run=_run_ensemble,
        run_other=_run,
        patterns=_FOUR_STEPS_TWICE,
    ),
    PipelineCase(
        "MarigoldIntrinsicsPipeline",
        build=lambda: _build("MarigoldIntrinsicsPipeline", "intrinsics", targets=2),
        run=_run_ensemble,
        run_other=_run,
        patterns=_FOUR_STEPS_TWICE,
    ),
]

REFUSED: list[RefusedCase] = []
