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
    """The keyword arguments that generate the images of these prompts from these seeds.

    Args:
        pipe: the pipeline.
        prompt: the prompt, or those of a batch.
        seed: the seed, or one per image of a batch.
        steps: number of denoising steps.
        guidance: guidance scale; None for the default of the pipeline.
        negative_prompt: the negative prompt, or those of a batch.
        size: width and height in pixels; None for the default of the pipeline.
        inputs: images to start from.
        more: further arguments of the pipeline.
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
