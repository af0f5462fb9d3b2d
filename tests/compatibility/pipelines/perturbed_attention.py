"""Pipelines with perturbed-attention guidance (PAG) on Stable Diffusion."""

from __future__ import annotations

from typing import Any

from tests.compatibility.case import PipelineCase, RefusedCase, uniform
from tests.compatibility.components import controlnet, denoise, image, mask, stable_diffusion, stable_diffusion_unet

__all__ = ["CASES", "REFUSED"]


def _controlled(name: str) -> Any:
    unet = stable_diffusion_unet()
    return stable_diffusion(name, unet=unet, controlnet=controlnet(unet))


CASES = [
    PipelineCase(
        "StableDiffusionPAGPipeline",
        build=lambda: stable_diffusion("StableDiffusionPAGPipeline"),
        run=lambda pipe: denoise(pipe, height=64, width=64),
        run_other=lambda pipe: denoise(pipe, height=64, width=128, pag_scale=0.0),
        patterns=uniform(5),
        note="`pag_applied_layers` below the skip branch, such as the mid block, are perturbed at full steps only; "
        "the shallow steps take the perturbed deep feature",
    ),
    PipelineCase(
        "StableDiffusionPAGPipeline",
        id="perturbed above the skip branch",
        build=lambda: stable_diffusion(
            "StableDiffusionPAGPipeline", pag_applied_layers=["mid", "up_blocks.3.attentions.2"]
        ),
        run=lambda pipe: denoise(pipe, height=64, width=64, pag_adaptive_scale=0.01),
        run_other=lambda pipe: denoise(pipe, height=64, width=64, guidance_scale=0.0),
        patterns=uniform(5),
    ),
    PipelineCase(
        "StableDiffusionPAGImg2ImgPipeline",
        build=lambda: stable_diffusion("StableDiffusionPAGImg2ImgPipeline"),
        run=lambda pipe: denoise(pipe, image=image(), strength=0.8),
        run_other=lambda pipe: denoise(pipe, image=image(), strength=0.4),
        patterns=uniform(4),
    ),
    PipelineCase(
        "StableDiffusionPAGInpaintPipeline",
        build=lambda: stable_diffusion("StableDiffusionPAGInpaintPipeline"),
        run=lambda pipe: denoise(pipe, image=image(), mask_image=mask(), strength=0.8),
        run_other=lambda pipe: denoise(pipe, image=image(), mask_image=mask(), strength=0.4),
        patterns=uniform(4),
    ),
    PipelineCase(
        "StableDiffusionControlNetPAGPipeline",
        build=lambda: _controlled("StableDiffusionControlNetPAGPipeline"),
        run=lambda pipe: denoise(pipe, image=image()),
        run_other=lambda pipe: denoise(pipe, steps=3, image=image(size=128), pag_scale=0.0),
        patterns=uniform(5),
    ),
    PipelineCase(
        "StableDiffusionControlNetPAGInpaintPipeline",
        build=lambda: _controlled("StableDiffusionControlNetPAGInpaintPipeline"),
        run=lambda pipe: denoise(pipe, image=image(), mask_image=mask(), control_image=image(1), strength=0.8),
        run_other=lambda pipe: denoise(pipe, image=image(), mask_image=mask(), control_image=image(1), strength=0.4),
        patterns=uniform(4),
    ),
]

REFUSED: list[RefusedCase] = []
