"""Which steps of a trajectory are full. Pure Python: nothing here knows about tensors."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SKIP_MODES", "UniformSchedule"]

SKIP_MODES = ("uniform",)
"""The values that `skip_mode` takes."""


@dataclass(frozen=True)
class UniformSchedule:
    """Every `interval`-th step is full, beginning with the first (the paper, section 3.3: 1:N).

    Args:
        interval: number of steps from one full step to the next; 1 makes every step full.

    Example:
        >>> UniformSchedule(3).pattern(8)
        'F..F..F.'
    """

    interval: int

    @property
    def caches(self) -> bool:
        """Whether any step can be shallow at all."""
        return self.interval > 1

    def is_full(self, step: int) -> bool:
        """Whether the step, counted from 0 at the start of the trajectory, is full."""
        return step % self.interval == 0

    def full_steps(self, steps: int) -> int:
        """The number of full steps among the first `steps`."""
        return -(-steps // self.interval)

    def pattern(self, steps: int) -> str:
        """One character a step: `F` for a full step, `.` for a shallow one."""
        return "".join("F" if self.is_full(step) else "." for step in range(steps))
