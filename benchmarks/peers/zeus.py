"""ZEUS (arXiv 2604.01552; Ting-Justin-Jiang/ZEUS)."""

from __future__ import annotations

from torch import Tensor

from benchmarks.peers.peer import Call

__all__ = ["Zeus"]


class Zeus:
    """Every `interval`-th step is full; skipped ones extrapolate the last two full steps, or re-use the last by turns.

    With e1 the output of the last full step and e0 that of the full step before it, the first skipped step after a full
    one is `2 * e1 - e0` regardless of their distance, the second e1 again, and so on: no two in a row extrapolate.

    Published defaults: interval 3, steps 10 to 45 of 50.

    What differs: the published 4-point interpolation late in the run is left out. The noise prediction is extrapolated
    for every scheduler.
    """

    def __init__(self, interval: int = 3, start: float = 10 / 50, end: float = 45 / 50) -> None:
        self._interval, self._start, self._end = interval, start, end
        self._outputs: list[Tensor] = []
        self._in_a_row = 0

    def predict(self, call: Call) -> Tensor:
        inside = self._start * call.steps <= call.number < self._end * call.steps
        if not inside or call.number % self._interval == 0 or len(self._outputs) < 2:
            self._in_a_row = 0
            self._outputs = [*self._outputs[-1:], call.full()]
            return self._outputs[-1]
        self._in_a_row += 1
        before, last = self._outputs
        return call.skip(2 * last - before if self._in_a_row % 2 else last)
