"""The executors of the models that a node has been put on, which its runs share."""

from __future__ import annotations

import threading
import weakref
from collections import Counter

from torch import nn

from DeepCache.engine.executor import Executor
from DeepCache.engine.torch_versions import not_compiled

__all__ = ["Executors", "turn"]

_TURNS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_MAKING_A_TURN = threading.Lock()


@not_compiled
def turn(model: nn.Module) -> threading.RLock:
    """The lock of a model, which a shallow step changes for the length of a call: threads that share it take turns."""
    with _MAKING_A_TURN:
        return _TURNS.setdefault(model, threading.RLock())


class Executors:
    """The executors of models. They are kept from run to run, since graphs are compiled for each, and have their hooks
    on a model while any run is using it. All methods are called within the `turn` of the model."""

    def __init__(self) -> None:
        self._executors: dict[tuple[nn.Module, tuple[int, ...]], Executor] = {}
        self._runs: Counter[tuple[nn.Module, tuple[int, ...]]] = Counter()

    def begin(self, model: nn.Module, branches: tuple[int, ...]) -> None:
        """A run begins to use a model."""
        self._runs[model, branches] += 1

    def of(self, model: nn.Module, branches: tuple[int, ...]) -> Executor:
        """The executor of a model for these skip branches, with its hooks on."""
        executor = self._executors.get((model, branches))
        if executor is not None and executor.out_of_date:
            executor.detach()
            executor = None
        if executor is None:
            executor = self._executors[model, branches] = Executor(model, branches)
        executor.attach()
        return executor

    def end(self, model: nn.Module, branches: tuple[int, ...]) -> None:
        """A run uses a model no more."""
        self._runs[model, branches] -= 1
        executor = self._executors.get((model, branches))
        if not self._runs[model, branches] and executor is not None:
            # After an interruption there may be a feature that nobody has taken.
            executor.reset()
            executor.detach()
