"""Guidance reuse: runs the half of a guided batch that has the prompt, and rebuilds the other half.

With classifier-free guidance a pipeline hands its U-Net one batch of two halves: the latents without the prompt, and
the same latents with it. The difference of the two outputs changes slowly. A step with guidance reuse runs the half
with the prompt alone and adds the forecast difference to get the other one, so that the pipeline gets both and may
guide as strongly as it likes.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

__all__ = [
    "conditional_half",
    "counts_parts",
    "join_halves",
    "latents",
    "output_tensor",
    "several_prompts",
    "table_of_unknown_rows",
    "tensors_in",
    "why_not_two_halves",
    "with_tensor",
]


# Arguments of attention processors by what their first side is.
_BY_BATCH = ("gligen",)
_NOT_BY_BATCH = ("ip_adapter_masks",)


def why_not_two_halves(pipe: Any, unet: nn.Module, sample: torch.Tensor) -> str:
    """Why the batch of a U-Net call is not that of classifier-free guidance; an empty string where it is.

    Compares the latents of the two halves, which takes a transfer from the device: for full steps only.

    Args:
        pipe: the pipeline, which as a rule says whether it guides.
        unet: its U-Net.
        sample: what the U-Net is called with, the batch first.
    """
    if getattr(pipe, "do_perturbed_attention_guidance", False):
        return "the pipeline uses perturbed-attention guidance, whose batch has a part more"
    if not getattr(pipe, "do_classifier_free_guidance", True):
        return "the pipeline says that it does no classifier-free guidance (guidance_scale is 1 or less, or built in)"
    if len(sample) % 2:
        return f"the batch of the U-Net has {len(sample)} samples, which is not two halves"
    first, second = sample.chunk(2)
    # What stands beside the latents may be left blank in the half without the prompt, and no more than that.
    if not torch.equal(*latents(unet, sample).chunk(2)) or not ((first == second) | (first == 0)).all():
        return "the two halves of the U-Net's batch are not the same latents (no guidance, or another order)"
    return ""


def several_prompts(args: tuple[Any, ...], kwargs: dict[str, Any], sample: torch.Tensor) -> bool:
    """Whether the half without the prompt has the same latents with several prompts: it is then of several parts
    (Semantic Guidance with two edits). Several images of the same latents have the same prompt there.

    Takes transfers from the device, where latents are the same twice in a half.
    """
    batch, sides = len(sample), _batch_sides(sample)
    others = [tensor.chunk(batch) for tensor in tensors_in([args, kwargs]) if _goes_by(tensor, sides)]
    return any(
        torch.equal(sample[first], sample[second])
        and not all(torch.equal(each[first], each[second]) for each in others)
        for first, second in itertools.combinations(range(batch // 2), 2)
    )


def table_of_unknown_rows(kwargs: dict[str, Any], sample: torch.Tensor) -> str:
    """What among the arguments of attention processors has as many rows as the batch, while nothing tells whether they
    are those of the batch (a table of regions); an empty string where there is no such thing."""
    sides = _batch_sides(sample)
    for name, value in (kwargs.get("cross_attention_kwargs") or {}).items():
        if name not in (*_BY_BATCH, *_NOT_BY_BATCH) and any(_goes_by(tensor, sides) for tensor in tensors_in(value)):
            return str(name)
    return ""


def counts_parts(layers: Iterable[nn.Module]) -> bool:
    """Whether the processor of an attention layer is told how many parts a batch has, as one that attends across the
    frames of each must be (Text2Video-Zero): it would take half of a batch for all of it."""
    return any(hasattr(layer.processor, "batch_size") for layer in layers)


def conditional_half(
    args: tuple[Any, ...], kwargs: dict[str, Any], sample: torch.Tensor, half: int = 1
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a denoiser's call for the half of its batch that has the prompt.

    Every tensor whose first side is the batch is cut, or of a video the batch times its frames; all else stays, and so
    do the masks of IP-Adapters, which are as many as the adapters.

    Args:
        args: the positional arguments.
        kwargs: the keyword arguments.
        sample: the sample, of five sides where it is a video.
        half: which half that is, 0 or 1.

    Example:
        >>> args, kwargs = conditional_half(
        ...     (torch.zeros(4, 3), torch.tensor(9)), {"text": [torch.ones(4, 2)], "rotary": torch.ones(8, 2)},
        ...     torch.zeros(4, 3))
        >>> args[0].shape, args[1].shape, kwargs["text"][0].shape, kwargs["rotary"].shape
        (torch.Size([2, 3]), torch.Size([]), torch.Size([2, 2]), torch.Size([8, 2]))
    """
    sides = _batch_sides(sample)
    return _half(args, sides, half), _half(kwargs, sides, half)


def output_tensor(output: Any) -> torch.Tensor:
    """The prediction in what a U-Net returned: a tensor, or a tuple or an output object that begins with it."""
    tensor: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return tensor


def join_halves(conditional: torch.Tensor, difference: torch.Tensor, half: int = 1) -> torch.Tensor:
    """The prediction for the whole batch.

    Args:
        conditional: the prediction for the half with the prompt.
        difference: the prediction without the prompt minus that with it.
        half: which half of the batch has the prompt, 0 or 1.
    """
    unconditional = conditional + difference
    return torch.cat([unconditional, conditional] if half else [conditional, unconditional])


def with_tensor(output: Any, tensor: torch.Tensor) -> Any:
    """What a U-Net returned, with another prediction in it."""
    if isinstance(output, torch.Tensor):
        return tensor
    if isinstance(output, tuple):
        return (tensor, *output[1:])
    changed = copy.copy(output)
    setattr(changed, next(iter(output)), tensor)
    return changed


def latents(unet: nn.Module, sample: torch.Tensor) -> torch.Tensor:
    """The channels of a sample that are denoised: an image to start from (Stable Video Diffusion) or a mask may follow,
    and need not be the same in both halves."""
    config: Any = getattr(unet, "config", None)
    taken, made = getattr(config, "in_channels", None), getattr(config, "out_channels", None)
    # Of five sides the second or the third holds the channels, and the frames may be as many.
    for axis in (2, 1, 3, 4) if sample.ndim == 5 else range(1, sample.ndim):
        if made is not None and sample.shape[axis] == taken:
            return sample.narrow(axis, 0, min(taken, made))
    return sample


def _batch_sides(sample: torch.Tensor) -> set[int]:
    """How long the first side of a tensor is that has the batch there."""
    frames = sample.shape[1:3] if sample.ndim == 5 else ()
    return {len(sample), *(len(sample) * count for count in frames)}


def _goes_by(tensor: torch.Tensor, sides: set[int]) -> bool:
    return tensor.ndim > 0 and len(tensor) in sides


def _half(value: Any, sides: set[int], half: int) -> Any:
    if isinstance(value, torch.Tensor):
        return value.chunk(2)[half] if _goes_by(value, sides) else value
    if isinstance(value, dict):
        return {name: item if name in _NOT_BY_BATCH else _half(item, sides, half) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_half(item, sides, half) for item in value)
    return value


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a value: itself, or those in a dictionary, list or tuple."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict) or type(value) in (list, tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(item)
