"""The chunks of a call: ComfyUI puts as many conds into one batch as memory allows, which may differ the next time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Any

import torch

__all__ = ["ChunkKeys"]


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
