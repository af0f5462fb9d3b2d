"""The settings that a sequence is run with, and what their schedule says, worked out here."""

from __future__ import annotations

import random
from dataclasses import dataclass

from DeepCache import DeepCacheConfig
from DeepCache.schedule import BranchSchedule, ExplicitSchedule, Schedule, UniformSchedule

__all__ = ["Setting", "draw_setting"]


@dataclass(frozen=True)
class Setting:
    """Settings of DeepCache.

    Args:
        interval: steps from one full step to the next.
        branch: the skip branch of shallow steps.
        forecast: `"none"` or `"linear"`.
        at: the full steps, where they are listed.
        after: the branches of the shallow steps after a full one, where they differ.
    """

    interval: int
    branch: int
    forecast: str = "none"
    at: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @property
    def branches(self) -> tuple[int, ...]:
        """Every branch that a shallow step may use."""
        return tuple(sorted(set(self.after))) or (self.branch,)

    def config(self) -> DeepCacheConfig:
        """The settings as DeepCache takes them."""
        schedule: Schedule | None = None
        if self.after:
            schedule = BranchSchedule(UniformSchedule(self.interval), self.after)
        elif self.at:
            schedule = ExplicitSchedule(self.at, branch=self.branch)
        return DeepCacheConfig(self.interval, self.branch, forecast=self.forecast, schedule=schedule)  # type: ignore[arg-type]

    def step(self, number: int) -> int | None:
        """The branch of a step of an ordinary run, or None where the step is full."""
        if number in self.at or (not self.at and number % self.interval == 0):
            return None
        if self.after:
            return self.after[min(number % self.interval, len(self.after)) - 1]
        return self.branch


def draw_setting(rng: random.Random, branches: int) -> Setting:
    """Settings for a U-Net with so many skip branches."""
    interval, branch = rng.choice((2, 3, 3, 3, 4, 8)), rng.randrange(branches)
    forecast = "linear" if rng.random() < 0.25 else "none"
    kind = rng.random()
    if kind < 0.1:
        at = (0, *sorted(rng.sample(range(1, 10), rng.randint(1, 3))))
        return Setting(interval, branch, forecast, at=at)
    if kind < 0.2:
        return Setting(interval, branch, forecast, after=tuple(rng.randrange(branches) for _ in range(2)))
    return Setting(interval, branch, forecast)
