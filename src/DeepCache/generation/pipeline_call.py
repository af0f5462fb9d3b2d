"""The keyword arguments of a pipeline call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from DeepCache.generation.image_inputs import ImageInputs

__all__ = ["pipeline_call"]


def pipeline_call(
    pipe: Any,
    prompt: str | Sequence[str],
    seed: int | Sequence[int],
    *,
    steps: int,
    guidance: float | None = None,
    negative_prompt: str | Sequence[str] = "",
    size: tuple[int, int] | None = None,
    inputs: ImageInputs | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The keyword arguments that generate the images of a prompt and a seed, or of those of a batch.

    Guidance scale and size are those of the pipeline by default; `more` are further arguments of the pipeline.
    """
    import torch

    # On the CPU regardless of the device, so that a seed gives the same noise everywhere.
    generators = [torch.Generator("cpu").manual_seed(each) for each in ((seed,) if isinstance(seed, int) else seed)]
    call: dict[str, Any] = {
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "num_inference_steps": steps,
        "generator": generators[0] if isinstance(seed, int) else generators,
    }
    if isinstance(negative_prompt, str):
        call |= {"negative_prompt": negative_prompt} if negative_prompt else {}
    elif any(negative_prompt):
        call["negative_prompt"] = list(negative_prompt)
    if guidance is not None:
        call["guidance_scale"] = guidance
    if inputs:
        call |= inputs.arguments(pipe, size)
    elif size is not None:
        call["width"], call["height"] = size
    return call | more
