"""Every diffusers pipeline with a denoising U-Net, one module a family."""

from __future__ import annotations

from itertools import chain

from tests.compatibility.case import BrokenCase, PipelineCase, RefusedCase
from tests.compatibility.pipelines import (
    audio,
    cascade,
    controlnet,
    deepfloyd_if,
    dreamlite,
    kandinsky,
    kolors,
    latent_diffusion,
    marigold,
    onnx,
    perturbed_attention,
    pixel,
    stable_diffusion,
    stable_diffusion_editing,
    stable_diffusion_xl,
    unclip,
    versatile_diffusion,
    video,
)

__all__ = ["BROKEN", "CASES", "REFUSED"]

_FAMILIES = (
    audio,
    cascade,
    controlnet,
    deepfloyd_if,
    dreamlite,
    kandinsky,
    kolors,
    latent_diffusion,
    marigold,
    onnx,
    perturbed_attention,
    pixel,
    stable_diffusion,
    stable_diffusion_editing,
    stable_diffusion_xl,
    unclip,
    versatile_diffusion,
    video,
)

CASES: tuple[PipelineCase, ...] = tuple(chain.from_iterable(family.CASES for family in _FAMILIES))
REFUSED: tuple[RefusedCase, ...] = tuple(chain.from_iterable(family.REFUSED for family in _FAMILIES))
BROKEN: tuple[BrokenCase, ...] = versatile_diffusion.BROKEN
