"""What a call may return, worked out without DeepCache.

`Twin` is a copy of the U-Net that DeepCache never sees. It always runs as a whole. A shallow step is made of it by a
forward hook on the module that makes the deep feature: the hook returns a stored tensor in its place, and what the deep
part has computed is lost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from tests.fuzz.unets import UNetKind

__all__ = ["Memory", "Record", "Twin", "output_of", "same"]

Features = dict[int, Tensor]
Purpose = tuple[Hashable, ...]

_KEPT = 12


def output_of(output: Any) -> Tensor:
    """The tensor in what a U-Net returned."""
    return output if isinstance(output, Tensor) else output[0]


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> bool:
    """Whether two outputs are the same to the last bit, or but for the order of operations."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    return torch.equal(found, expected) or torch.allclose(found, expected, rtol=tolerance, atol=tolerance)


class Twin:
    """A U-Net that DeepCache never sees.

    Args:
        module: the U-Net.
        kind: its kind.
    """

    def __init__(self, module: nn.Module, kind: UNetKind) -> None:
        self.module, self.kind = module, kind
        self._handles: list[Any] = []
        self._given: tuple[int, Tensor] | None = None
        self._seen: Features = {}
        self.watch()

    def watch(self) -> None:
        """Puts the hooks on the modules that make deep features, as they are now."""
        for handle in self._handles:
            handle.remove()
        self._handles = [
            self.module.get_submodule(path).register_forward_hook(partial(self._hook, branch))
            for branch, path in enumerate(self.kind.producers)
        ]

    def unwatched(self) -> nn.Module:
        """A copy of the U-Net without the hooks."""
        import copy

        for handle in self._handles:
            handle.remove()
        copied = copy.deepcopy(self.module)
        self.watch()
        return copied

    def whole(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Features]:
        """The output of the whole U-Net, and its deep features by branch."""
        self._given, self._seen = None, {}
        output = output_of(self.module(*args, **kwargs))
        seen, self._seen = self._seen, {}
        return output, seen

    @torch.no_grad()
    def shallow(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], branch: int, feature: Tensor
    ) -> tuple[Tensor, Features]:
        """The output of a shallow step, and the deep features that it renews, those of shallower branches."""
        self._given, self._seen = (branch, feature), {}
        try:
            output = output_of(self.module(*args, **kwargs))
        finally:
            self._given = None
        return output, {number: tensor for number, tensor in self._seen.items() if number < branch}

    def _hook(self, branch: int, module: nn.Module, args: Any, output: Any) -> Any:
        if self._given is not None and self._given[0] == branch:
            stored = self._given[1].clone()
            return stored if isinstance(output, Tensor) else (stored, *output[1:])
        self._seen[branch] = output_of(output).detach().clone()
        return None


@dataclass(frozen=True)
class Record:
    """A call whose deep features a later call of the same purpose may use.

    Args:
        call: its number.
        index: where it stands in its list of timesteps.
        ordinal: how many steps of its run came before it.
        shape: of its sample, with the dtype.
        features: its deep features by branch.
    """

    call: int
    index: int
    ordinal: int
    shape: tuple[Any, ...]
    features: Features


@dataclass
class Memory:
    """The records by purpose, each purpose being one conditioning of one image in one run."""

    records: dict[Purpose, list[Record]] = field(default_factory=lambda: defaultdict(list))

    def add(self, purpose: Purpose, record: Record) -> None:
        """Adds what a call has computed; a call that computed nothing deep has nothing to add."""
        if record.features:
            self.records[purpose] = [*self.records[purpose], record][-_KEPT:]

    def candidates(
        self, purpose: Purpose, index: int, ordinal: int, shape: tuple[Any, ...], branches: tuple[int, ...], line: bool
    ) -> Iterator[tuple[int, Tensor, str]]:
        """Every deep feature that a shallow step of this purpose may use, the likeliest first: its branch, the tensor
        and what it is. With `line` also those on the lines through two calls."""
        for branch in branches:
            fit = [each for each in self.records[purpose] if branch in each.features and each.shape == shape]
            if line:
                yield from _lines(fit[::-1][:5], branch, index, ordinal)
            for record in reversed(fit):
                yield branch, record.features[branch], f"the deep feature of call {record.call}"


def _lines(latest_first: list[Record], branch: int, index: int, ordinal: int) -> Iterator[tuple[int, Tensor, str]]:
    for last, before in combinations(latest_first, 2):
        slope = last.features[branch] - before.features[branch]
        steps = (
            (index - last.index, last.index - before.index),
            (ordinal - last.ordinal, last.ordinal - before.ordinal),
        )
        for ahead, apart in dict.fromkeys(steps):
            if apart:
                name = f"the line through calls {before.call} and {last.call}"
                yield branch, last.features[branch] + slope * (ahead / apart), name
