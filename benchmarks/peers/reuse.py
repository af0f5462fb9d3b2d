"""Re-use of the prediction, or of the prediction minus the input, at a fixed interval.

The rule under EasyCache and its relatives without their decision: at a skipped step the output is the input plus what
the last full step added to it (`follow_input=True`), or the last output as it is. ComfyUI's users know the first from
the EasyCache node; no paper of its own. The last step is full.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from benchmarks.peers.peer import Call

__all__ = ["PredictionReuse"]


@dataclass
class PredictionReuse:
    """Every `interval`-th step is full, and so are the first ones.

    Args:
        interval: number of steps from one full step to the next.
        start: share of the steps at the start that are all full.
        follow_input: whether the prediction minus the input is re-used, and not the prediction.
    """

    interval: int
    start: float = 0.0
    follow_input: bool = True

    def __post_init__(self) -> None:
        self._kept: Tensor | None = None

    def predict(self, call: Call) -> Tensor:
        first = round(self.start * call.steps)
        due = call.number < first or (call.number - first) % self.interval == 0 or call.number == call.steps - 1
        if due or self._kept is None:
            output = call.full()
            self._kept = output - call.x if self.follow_input else output
            return output
        kept = self._kept + call.x if self.follow_input else self._kept
        return call.skip(kept)
