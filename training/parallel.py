"""Learning parts of a batch side by side, each on one processor thread.

On a machine that other programs use too, threads that meet once a step lose less time than
threads that meet in every operation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import torch
from torch import Tensor, nn


class Replicas:
    """A model and copies of it that share its weights but not its gradients."""

    def __init__(self, model: nn.Module, count: int) -> None:
        self.models = [model, *(copy.deepcopy(model) for _ in range(count - 1))]
        for replica in self.models[1:]:
            for theirs, ours in zip(replica.parameters(), model.parameters(), strict=True):
                theirs.data = ours.data
        self._free: SimpleQueue[nn.Module] = SimpleQueue()
        for replica in self.models:
            self._free.put(replica)
        self._threads = ThreadPoolExecutor(count)

    def backward(self, loss: Callable[[nn.Module, Tensor], Tensor], parts: Sequence[Tensor]) -> float:
        """Add up the loss over the parts and leave its gradient in the first model."""

        def learn(part: Tensor) -> float:
            replica = self._free.get()
            value = loss(replica, part)
            value.backward()
            self._free.put(replica)
            return value.item()

        for replica in self.models:
            replica.zero_grad()
        total = sum(self._threads.map(learn, parts))
        self._merge()
        return total

    @torch.no_grad()
    def _merge(self) -> None:
        """Bring the gradients of all copies together in the first."""
        first = list(self.models[0].parameters())
        for replica in self.models[1:]:
            for ours, theirs in zip(first, replica.parameters(), strict=True):
                if ours.grad is None:
                    ours.grad = theirs.grad
                elif theirs.grad is not None:
                    ours.grad += theirs.grad
