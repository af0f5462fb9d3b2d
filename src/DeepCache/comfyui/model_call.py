"""A call of the diffusion model: its arguments, and what becomes of it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from DeepCache.comfyui.block_numbers import BlockNumbers
from DeepCache.engine.executor import Executor
from DeepCache.engine.torch_versions import not_compiled
from DeepCache.schedule import Step

__all__ = ["Begun", "ModelCall", "positive_of_two"]


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


class Begun(NamedTuple):
    """A call of the diffusion model that has begun.

    Args:
        step: what it does.
        call: the arguments.
        given: those that the model is called with.
        executor: what has changed the model for it; None where nothing has.
        output: what it returns, where the model is not called.
        number: how many calls of the evaluation came before it.
        numbers: what patches noted of the blocks; None on a step that is not full.
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
        """Changes the model back, however the call ended."""
        if self.executor is not None:
            self.executor.end()


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
