"""Guidance reuse: runs the half of a guided batch that has the prompt, and forecasts the other half.

With classifier-free guidance a pipeline calls its U-Net with one batch of two halves: the latents without the prompt,
and the same latents with it. The difference of the two outputs changes slowly. A step with guidance reuse runs only the
half with the prompt and adds the forecast difference to it to get the other. The pipeline gets both and may guide at
any scale.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from DeepCache.engine.layouts.layout import Args, Kwargs

# Arguments of attention processors by the meaning of their first dimension.
_BY_BATCH = ("gligen",)
_NOT_BY_BATCH = ("ip_adapter_masks",)


def why_not_two_halves(pipe: Any, unet: nn.Module, sample: torch.Tensor) -> str:
    """Why the batch of a U-Net call is not that of classifier-free guidance; an empty string if it is.

    Compares the latents of the two halves, which requires a device-to-host transfer: for full steps only.
    """
    if getattr(pipe, "do_perturbed_attention_guidance", False):
        return "the pipeline uses perturbed-attention guidance, whose batch has one part more"
    if not getattr(pipe, "do_classifier_free_guidance", True):
        return "classifier-free guidance is disabled (guidance_scale is 1 or less, or built in)"
    if len(sample) % 2:
        return f"the batch of the U-Net has {len(sample)} samples, which is not two halves"
    first, second = sample.chunk(2)
    # Channels beside the latents may be zero in the half without the prompt, and differ in no other way.
    if not torch.equal(*latents(unet, sample).chunk(2)) or not ((first == second) | (first == 0)).all():
        return "the two halves of the U-Net's batch are not the same latents (no guidance, or another order)"
    return ""


def several_prompts(args: Args, kwargs: Kwargs, sample: torch.Tensor) -> bool:
    """Whether the half without the prompt has the same latents with several prompts, so that it has several parts
    (Semantic Guidance with two edits). Requires transfers where the same latents are in a half twice."""
    batch, sides = len(sample), _batch_sides(sample)
    others = [tensor.chunk(batch) for tensor in tensors_in([args, kwargs]) if _is_per_sample(tensor, sides)]
    return any(
        torch.equal(sample[first], sample[second])
        and not all(torch.equal(each[first], each[second]) for each in others)
        for first, second in itertools.combinations(range(batch // 2), 2)
    )


def table_of_unknown_rows(kwargs: Kwargs, sample: torch.Tensor) -> str:
    """The name of an argument of attention processors that has as many rows as the batch, although its rows may be
    something else (a table of regions); an empty string if there is none."""
    sides = _batch_sides(sample)
    for name, value in (kwargs.get("cross_attention_kwargs") or {}).items():
        known = name in (*_BY_BATCH, *_NOT_BY_BATCH)
        if not known and any(_is_per_sample(tensor, sides) for tensor in tensors_in(value)):
            return str(name)
    return ""


def counts_parts(layers: Iterable[nn.Module]) -> bool:
    """Whether the processor of an attention layer is configured with the number of parts of a batch, as one that
    attends across the frames of each is (Text2Video-Zero). It would take half of a batch for all of it."""
    return any(hasattr(layer.processor, "batch_size") for layer in layers)


def conditional_half(args: Args, kwargs: Kwargs, sample: torch.Tensor, half: int = 1) -> tuple[Args, Kwargs]:
    """The arguments of a denoiser's call for the half (0 or 1) of its batch that has the prompt.

    Every tensor whose first dimension is the batch is cut, or for a video the batch times its frames.
    """
    sides = _batch_sides(sample)
    return _half(args, sides, half), _half(kwargs, sides, half)


def join_halves(conditional: torch.Tensor, difference: torch.Tensor, half: int = 1) -> torch.Tensor:
    """The prediction for the whole batch, from the half with the prompt (half 0 or 1 of the batch) and the prediction
    without the prompt minus the one with it."""
    unconditional = conditional + difference
    return torch.cat([unconditional, conditional] if half else [conditional, unconditional])


def output_tensor(output: Any) -> torch.Tensor:
    """The prediction in the output of a U-Net: a tensor, or a tuple or an output object that begins with it."""
    tensor: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return tensor


def with_tensor(output: Any, tensor: torch.Tensor) -> Any:
    """The output of a U-Net with another prediction in it."""
    if isinstance(output, torch.Tensor):
        return tensor
    if isinstance(output, tuple):
        return (tensor, *output[1:])
    changed = copy.copy(output)
    setattr(changed, next(iter(output)), tensor)
    return changed


def latents(unet: nn.Module, sample: torch.Tensor) -> torch.Tensor:
    """The channels of a sample that are denoised: an initial image (Stable Video Diffusion) or a mask may follow, and
    may differ between the halves."""
    config: Any = getattr(unet, "config", None)
    taken, made = getattr(config, "in_channels", None), getattr(config, "out_channels", None)
    # With five dimensions the second or the third is the channels, and there may be as many frames.
    for axis in (2, 1, 3, 4) if sample.ndim == 5 else range(1, sample.ndim):
        if made is not None and sample.shape[axis] == taken:
            return sample.narrow(axis, 0, min(taken, made))
    return sample


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a value: itself, or those in a dictionary, list or tuple."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict) or type(value) in (list, tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(item)


def _batch_sides(sample: torch.Tensor) -> set[int]:
    """The lengths of a first dimension that is the batch."""
    frames = sample.shape[1:3] if sample.ndim == 5 else ()
    return {len(sample), *(len(sample) * count for count in frames)}


def _is_per_sample(tensor: torch.Tensor, sides: set[int]) -> bool:
    return tensor.ndim > 0 and len(tensor) in sides


def _half(value: Any, sides: set[int], half: int) -> Any:
    if isinstance(value, torch.Tensor):
        return value.chunk(2)[half] if _is_per_sample(value, sides) else value
    if isinstance(value, dict):
        return {name: item if name in _NOT_BY_BATCH else _half(item, sides, half) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_half(item, sides, half) for item in value)
    return value
