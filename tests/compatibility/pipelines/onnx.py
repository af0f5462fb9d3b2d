"""Pipelines whose U-Net is an ONNX graph."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

from tests.compatibility.case import PipelineCase, RefusedCase
from tests.compatibility.components import bare_pipeline

__all__ = ["CASES", "REFUSED"]

# `diffusers` itself hands them out only where onnxruntime is installed, which making one does not need.
_DEFINED_IN = {
    "OnnxStableDiffusionPipeline": "stable_diffusion.pipeline_onnx_stable_diffusion",
    "OnnxStableDiffusionImg2ImgPipeline": "stable_diffusion.pipeline_onnx_stable_diffusion_img2img",
    "OnnxStableDiffusionInpaintPipeline": "stable_diffusion.pipeline_onnx_stable_diffusion_inpaint",
    "OnnxStableDiffusionInpaintPipelineLegacy": (
        "deprecated.stable_diffusion_variants.pipeline_onnx_stable_diffusion_inpaint_legacy"
    ),
    "OnnxStableDiffusionUpscalePipeline": "stable_diffusion.pipeline_onnx_stable_diffusion_upscale",
    "StableDiffusionOnnxPipeline": "stable_diffusion.pipeline_onnx_stable_diffusion",
}


def _build(name: str) -> Any:
    pipelines = "diffusers.pipelines"
    model = import_module(f"{pipelines}.onnx_utils").OnnxRuntimeModel()
    return bare_pipeline(getattr(import_module(f"{pipelines}.{_DEFINED_IN[name]}"), name), unet=model)


CASES: list[PipelineCase] = []

REFUSED = [
    RefusedCase(
        name,
        build=partial(_build, name),
        reason="needs a U-Net that is a torch module",
        note="its U-Net is one ONNX graph; use the PyTorch pipeline of the same task",
        warns=("`OnnxRuntimeModel` is deprecated", "`StableDiffusionOnnxPipeline` is deprecated"),
    )
    for name in _DEFINED_IN
]
