"""What timesteps tell by themselves: where they lie, their values, and whether these are of a denoising run."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

__all__ = ["host_values", "is_denoising", "is_list_in", "is_one_value", "is_set", "next_occurrence", "step_index"]


def is_one_value(timestep: torch.Tensor) -> bool:
    """Whether the tensor is a single element, or one expanded over a batch."""
    return timestep.numel() == 1 or not any(timestep.stride())


def is_list_in(storage: torch.UntypedStorage, timesteps: Any) -> bool:
    """Whether a storage is that of a list of timesteps."""
    return (
        isinstance(timesteps, torch.Tensor)
        and timesteps.ndim == 1
        and timesteps.stride(0) > 0
        and timesteps.untyped_storage().data_ptr() == storage.data_ptr()
    )


def is_denoising(values: list[float]) -> bool:
    """Whether timesteps are those of a denoising run, and not random ones: they keep their direction, and there are
    six of them, or four that are about evenly spaced.

    Of six random values one in 360 keeps its direction; of four, one in 300 does and is evenly spaced.

    Args:
        values: the timesteps. Equal ones that follow each other count once.

    Example:
        >>> is_denoising([800, 600, 400, 200]), is_denoising([812, 301, 255, 4]), is_denoising([9, 6, 3])
        (True, False, False)
    """
    gaps = [after - before for before, after in pairwise(values) if after != before]
    if len(gaps) < 3 or min(gaps) < 0 < max(gaps):
        return False
    sizes = [abs(gap) for gap in gaps]
    return len(gaps) >= 5 or max(sizes) <= 1.5 * min(sizes)


def is_set(scheduler: Any) -> bool:
    """Whether the timesteps of a scheduler were set for a run. Until then many of diffusers list all those that the
    model was trained on, in which any value stands."""
    return getattr(scheduler, "num_inference_steps", 0) is not None


def step_index(scheduler: Any) -> int | None:
    """What the scheduler itself says of its position, where it does."""
    for name in ("step_index", "begin_index"):
        index = getattr(scheduler, name, None)
        if index is not None:
            return int(index)
    return None


def host_values(timestep: Any) -> set[float]:
    """The values of a timestep. Reading those of a tensor on a device waits for a transfer."""
    return set(timestep.flatten().tolist()) if isinstance(timestep, torch.Tensor) else {float(timestep)}


def next_occurrence(listed: list[float], value: float, position: int, again: bool) -> int:
    """Where in a list a call with this timestep stands.

    Args:
        listed: the list.
        value: a value in it.
        position: that of the call before; -1 where there was none.
        again: whether that call was for the same purpose.

    Returns:
        The position after the current one where the list repeats the value, else the current, else the next, else (a
        new run over the same list) the first.
    """
    if again and 0 <= position < len(listed) - 1 and listed[position] == listed[position + 1] == value:
        return position + 1
    start = max(position, 0)
    return listed.index(value, start) if value in listed[start:] else listed.index(value)
