"""A call of the diffusion model by ComfyUI: its arguments, its chunks, and its state while it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from DeepCache.comfyui.block_numbers import BlockNumbers
from DeepCache.engine.executor import Executor
from DeepCache.engine.torch_versions import not_compiled
from DeepCache.schedule import Step

__all__ = ["Begun", "ChunkKeys", "ModelCall", "positive_of_two"]


class ModelCall(NamedTuple):
    """The arguments of a call of the diffusion model.

    Args:
        sample: the latents of all chunks.
        control: the residuals of a ControlNet by position.
        others: the other arguments by name.
        options: the `transformer_options`.
        keys: the keys of the chunks.
    """

    sample: torch.Tensor
    control: Any
    others: dict[str, Any]
    options: dict[str, Any]
    keys: Sequence[Hashable] = ()

    def split(self, tensor: torch.Tensor) -> Iterator[tuple[Hashable, torch.Tensor]]:
        """The chunks of a tensor with the batch in its first dimension, each with its key."""
        return zip(self.keys, tensor.chunk(len(self.keys)), strict=True)

    def of_chunk(self, index: int) -> ModelCall:
        """The call of a single chunk."""
        sample, control, others = (_part(each, len(self.sample), index, len(self.keys)) for each in self[:3])
        lists: dict[str, Sequence[Any]] = {name: self.options[name] for name in ("cond_or_uncond", "uuids")}
        options = {**self.options, **{name: [each[index]] for name, each in lists.items()}}
        return ModelCall(sample, control, others, options, [self.keys[index]])


class Begun(NamedTuple):
    """A call in progress.

    Args:
        step: the step it runs.
        call: the arguments of ComfyUI's call.
        given: the arguments that the model gets.
        executor: the executor that has patched the model; None if the model is unchanged.
        output: the output of a skipped step, which does not call the model.
        number: index of the call in its evaluation.
        numbers: the block numbers recorded by a full step; None for other steps.
    """

    step: Step
    call: ModelCall
    given: ModelCall
    executor: Executor | None = None
    output: torch.Tensor | None = None
    number: int = 0
    numbers: BlockNumbers | None = None

    @not_compiled
    def undo(self) -> None:
        """Restores the model, also after an error."""
        if self.executor is not None:
            self.executor.end()


def positive_of_two(call: ModelCall) -> int | None:
    """Index of the positive chunk in a call of one positive and one negative chunk; None for other calls."""
    places = list(call.options["cond_or_uncond"])
    return places.index(0) if sorted(places) == [0, 1] and len(call.keys) == 2 else None


def _part(value: Any, rows: int, index: int, chunks: int) -> Any:
    """One chunk of every tensor with the batch in its first dimension."""
    if isinstance(value, torch.Tensor):
        return value.chunk(chunks)[index] if value.ndim and len(value) == rows else value
    if isinstance(value, dict):
        return {name: _part(each, rows, index, chunks) for name, each in value.items()}
    if isinstance(value, list):
        return [_part(each, rows, index, chunks) for each in value]
    return value


class ChunkKeys:
    """Keys for the chunks of the calls of one evaluation, which identify each chunk in the next evaluation.

    ComfyUI batches as many conds as memory allows, which may differ from one evaluation to the next. The key of a
    chunk has the uuid of its cond, its place in the guidance (0 for the positive, 1 for the negative), the frames of
    a context window, its shape, and the number of equal chunks before it in the evaluation: perturbed attention and
    self-attention guidance call the model again with the same cond.

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
        """The keys of the chunks in a call with these `transformer_options`; `sample` concatenates them in its first
        dimension."""
        uuids, places = options["uuids"], options["cond_or_uncond"]
        if len(sample) % len(uuids):
            # A `model_function_wrapper` runs parts of a batch with the options of the whole batch.
            uuids, places = [tuple(uuids)], [tuple(places)]
        shape, window = (len(sample) // len(uuids), *sample.shape[1:]), _window(options)
        keys: list[Hashable] = []
        for uuid, place in zip(uuids, places, strict=True):
            key = (uuid, place, window, shape)
            keys.append((*key, self._seen[key]))
            self._seen[key] += 1
        return keys


def _window(options: dict[str, Any]) -> Hashable:
    """The frames of a call, if a video is generated in windows."""
    window = getattr(options.get("context_window"), "index_list", None)
    # AnimateDiff-Evolved has its own windows.
    moving = options.get("ad_params")
    if window is None and isinstance(moving, dict):
        window = moving.get("sub_idxs")
    return None if window is None else tuple(window)
