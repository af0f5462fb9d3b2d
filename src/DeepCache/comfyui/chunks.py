"""The chunks of a call: ComfyUI puts as many conds into one batch as memory allows, which may differ the next time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

__all__ = ["ChunkKeys", "ModelCall", "positive_of_two"]


class ChunkKeys:
    """Names the chunks of the calls of one evaluation, so that each is found again at the next one.

    A chunk is known by the uuid of its cond, its place in the guidance (0 for the positive, 1 for the negative), the
    frames of a context window, its shape, and how many such chunks came before it in the evaluation: perturbed
    attention and self-attention guidance call the model again with the same cond.

    Example:
        >>> keys, options = ChunkKeys(), {"uuids": ["a", "b"], "cond_or_uncond": [1, 0]}
        >>> [key[-1] for key in keys.of(options, torch.zeros(2, 4, 8, 8))]
        [0, 0]
        >>> [key[-1] for key in keys.of(options, torch.zeros(2, 4, 8, 8))]
        [1, 1]
    """

    def __init__(self) -> None:
        self._seen: Counter[Hashable] = Counter()

    def of(self, options: dict[str, Any], sample: torch.Tensor) -> list[Hashable]:
        """The keys of a call's chunks.

        Args:
            options: the `transformer_options` of the call.
            sample: its sample, the chunks one after another along the first side.
        """
        uuids, places = options["uuids"], options["cond_or_uncond"]
        if len(sample) % len(uuids):
            # A `model_function_wrapper` runs parts of a batch, and hands on what stands for all of it.
            uuids, places = [tuple(uuids)], [tuple(places)]
        shape, window = (len(sample) // len(uuids), *sample.shape[1:]), _window(options)
        keys: list[Hashable] = []
        for uuid, place in zip(uuids, places, strict=True):
            key = (uuid, place, window, shape)
            keys.append((*key, self._seen[key]))
            self._seen[key] += 1
        return keys


def _window(options: dict[str, Any]) -> Hashable:
    """The frames that a call is about, where a video is made window by window."""
    window = getattr(options.get("context_window"), "index_list", None)
    # AnimateDiff-Evolved has windows of its own.
    moving = options.get("ad_params")
    if window is None and isinstance(moving, dict):
        window = moving.get("sub_idxs")
    return None if window is None else tuple(window)


class ModelCall(NamedTuple):
    """The arguments of a call of the diffusion model.

    Args:
        sample: the latents of all chunks.
        control: the residuals of a ControlNet, by where they are added.
        others: the rest by name, but for the options.
        options: the `transformer_options`.
        keys: the keys of its chunks.
    """

    sample: torch.Tensor
    control: Any
    others: dict[str, Any]
    options: dict[str, Any]
    keys: Sequence[Hashable] = ()

    def split(self, tensor: torch.Tensor) -> Iterator[tuple[Hashable, torch.Tensor]]:
        """The chunks of a tensor whose first side is the batch, each with its key."""
        return zip(self.keys, tensor.chunk(len(self.keys)), strict=True)

    def of_chunk(self, index: int) -> ModelCall:
        """The call of one chunk alone."""
        sample, control, others = (_part(each, len(self.sample), index, len(self.keys)) for each in self[:3])
        lists: dict[str, Sequence[Any]] = {name: self.options[name] for name in ("cond_or_uncond", "uuids")}
        options = {**self.options, **{name: [each[index]] for name, each in lists.items()}}
        return ModelCall(sample, control, others, options, [self.keys[index]])


def positive_of_two(call: ModelCall) -> int | None:
    """Where the positive chunk stands in a call of one positive and one negative chunk; None in another call."""
    places = list(call.options["cond_or_uncond"])
    return places.index(0) if sorted(places) == [0, 1] and len(call.keys) == 2 else None


def _part(value: Any, rows: int, index: int, chunks: int) -> Any:
    """One chunk of every tensor whose first side is the batch."""
    if isinstance(value, torch.Tensor):
        return value.chunk(chunks)[index] if value.ndim and len(value) == rows else value
    if isinstance(value, dict):
        return {name: _part(each, rows, index, chunks) for name, each in value.items()}
    if isinstance(value, list):
        return [_part(each, rows, index, chunks) for each in value]
    return value
