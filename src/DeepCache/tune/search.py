"""Searches for the best schedule from a first one, by what its images really come to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from DeepCache.schedule import StepSchedule
from DeepCache.tune.evaluation import IDENTICAL, Measured

__all__ = ["Goal", "search"]


@dataclass(frozen=True)
class Goal:
    """What is wanted: the highest fidelity at a cost, or the lowest cost at a fidelity.

    Args:
        cost: the most multiply-accumulates of the U-Net, as a share of those without DeepCache, between 0 and 1.
        psnr: the least mean PSNR, in dB, below 120, which identical images count as.

    Raises:
        ValueError: not exactly one of the two is given, or it is out of its range.
    """

    cost: float | None = None
    psnr: float | None = None

    def __post_init__(self) -> None:
        if (self.cost is None) == (self.psnr is None):
            raise ValueError("give one goal: a cost (or a speed-up), or a PSNR")
        if self.cost is not None and not 0 < self.cost < 1:
            raise ValueError(f"cost must be a share between 0 and 1, got {self.cost}")
        if self.psnr is not None and not (math.isfinite(self.psnr) and self.psnr > 0):
            raise ValueError(f"psnr must be a number of dB above 0, got {self.psnr}")
        if self.psnr is not None and self.psnr >= IDENTICAL:
            raise ValueError(
                f"psnr must be below {IDENTICAL:g} dB, which stands for images identical to those without DeepCache, "
                f"got {self.psnr:g}"
            )

    def met_by(self, cost: float, psnr: float) -> bool:
        """Whether a schedule of this cost and fidelity will do."""
        return (self.cost is None or cost <= self.cost + 1e-9) and (self.psnr is None or psnr >= self.psnr)

    def rank(self, measured: Measured) -> tuple[bool, float, float]:
        """Larger is better."""
        met = self.met_by(measured.cost, measured.psnr)
        if self.cost is not None:
            return met, measured.psnr if met else -measured.cost, -measured.cost
        return met, -measured.cost if met else measured.psnr, measured.psnr

    def __str__(self) -> str:
        return f"cost ≤ {self.cost:.3f}" if self.cost is not None else f"PSNR ≥ {self.psnr:g} dB"


def search(
    start: Iterable[StepSchedule],
    goal: Goal,
    measure: Callable[[StepSchedule], Measured],
    neighbours: Callable[[StepSchedule], Iterable[StepSchedule]],
    promise: Callable[[StepSchedule, StepSchedule], float],
    evaluations: int,
) -> tuple[StepSchedule, Measured]:
    """The best schedule that was found: a descent by single decisions on the true error.

    Args:
        start: schedules to begin with, one or more.
        goal: what is wanted.
        measure: draws under a schedule and measures.
        neighbours: the schedules one decision away.
        promise: how much is expected of going from a schedule to a neighbour; the most promising is drawn first, and
            one of minus infinity is not drawn.
        evaluations: how many neighbours are drawn at most.
    """
    measured = {schedule: measure(schedule) for schedule in dict.fromkeys(start)}
    best = max(measured, key=lambda schedule: goal.rank(measured[schedule]))
    left = evaluations
    while left > 0:
        promises = {each: promise(best, each) for each in neighbours(best) if each not in measured}
        hopeful = sorted((each for each in promises if promises[each] > -math.inf), key=lambda each: -promises[each])
        for candidate in hopeful[:left]:
            left -= 1
            measured[candidate] = measure(candidate)
            if goal.rank(measured[candidate]) > goal.rank(measured[best]):
                best = candidate
                break
        else:
            break
    return best, measured[best]
