"""The executors of a node, shared by its runs."""

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
    """The lock of a model. A shallow step patches the model during a call, so threads that share it take turns."""
    with _MAKING_A_TURN:
        return _TURNS.setdefault(model, threading.RLock())


class Executors:
    """The executors of models by skip branches. They are kept between runs because compiled graphs belong to them, and
    are attached to a model while any run uses it. Callers hold the `turn` of the model."""

    def __init__(self) -> None:
        self._executors: dict[tuple[nn.Module, tuple[int, ...]], Executor] = {}
        self._runs: Counter[tuple[nn.Module, tuple[int, ...]]] = Counter()

    def begin(self, model: nn.Module, branches: tuple[int, ...]) -> None:
        """Notes that a run starts to use a model."""
        self._runs[model, branches] += 1

    def of(self, model: nn.Module, branches: tuple[int, ...]) -> Executor:
        """The attached executor of a model for these skip branches."""
        executor = self._executors.get((model, branches))
        if executor is not None and executor.out_of_date:
            executor.detach()
            executor = None
        if executor is None:
            executor = self._executors[model, branches] = Executor(model, branches)
        executor.attach()
        return executor

    def end(self, model: nn.Module, branches: tuple[int, ...]) -> None:
        """Notes that a run has finished with a model."""
        self._runs[model, branches] -= 1
        executor = self._executors.get((model, branches))
        if not self._runs[model, branches] and executor is not None:
            # After an interruption a feature may be left.
            executor.reset()
            executor.detach()
