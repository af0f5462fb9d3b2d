"""Settings and goal of a tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from DeepCache.schedule import check_integer
from DeepCache.text import shown

if TYPE_CHECKING:
    from DeepCache.tune.evaluation import Measured

__all__ = ["IDENTICAL", "Goal", "TuningSettings"]

IDENTICAL = 120.0
"""The PSNR in dB of identical images, so that a mean exists."""


@dataclass(frozen=True)
class Goal:
    """The goal of a tuning: the highest fidelity at a cost, or the lowest cost at a fidelity.

    Args:
        cost: the highest allowed share of the U-Net's multiply-accumulates without DeepCache, between 0 and 1.
        psnr: the lowest allowed mean PSNR in dB, below 120, which stands for identical images.

    Raises:
        ValueError: not exactly one of the two is given, or it is out of range.
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
        """Whether a schedule of this cost and fidelity meets the goal."""
        return (self.cost is None or cost <= self.cost + 1e-9) and (self.psnr is None or psnr >= self.psnr)

    def rank(self, measured: Measured) -> tuple[bool, float, float]:
        """A key to compare schedules; larger is better."""
        met = self.met_by(measured.cost, measured.psnr)
        if self.cost is not None:
            return met, measured.psnr if met else -measured.cost, -measured.cost
        return met, -measured.cost if met else measured.psnr, measured.psnr

    def __str__(self) -> str:
        return f"cost ≤ {self.cost:.3f}" if self.cost is not None else f"PSNR ≥ {self.psnr:g} dB"


@dataclass(frozen=True)
class TuningSettings:
    """Settings of a tuning.

    Args:
        prompts (`tuple` of `str`):
            Prompts of the search.
        held_out (`tuple` of `str`):
            Held-out prompts on which the result is checked; none of `prompts`.
        steps (`int`):
            Denoising steps.
        goal (`Goal`):
            The goal.
        model (`str`):
            The name of the model, for the record.
        guidances (`tuple` of `float`, defaults to `()`):
            The guidance scales, in any order. Every prompt is generated at each of them and all have the same weight;
            the plan is then valid from the lowest to the highest. By default the default scale of the pipeline.
        seed (`int`, defaults to `0`):
            Seed of the first prompt; the following prompts have the next numbers.
        batch (`int`, defaults to `8`):
            Prompts in one pipeline call.
        evaluations (`int`, defaults to `40`):
            The most schedules that the search generates with, beyond those it starts from.
        branches (`tuple` of `int`, defaults to `(0,)`):
            Skip branches of shallow steps; the search starts from the first.

    Raises:
        ValueError: a value is out of range.
    """

    prompts: tuple[str, ...]
    held_out: tuple[str, ...]
    steps: int
    goal: Goal
    model: str = "shapes"
    guidances: tuple[float, ...] = ()
    seed: int = 0
    batch: int = 8
    evaluations: int = 40
    branches: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if not self.prompts or not self.held_out:
            raise ValueError(
                f"tuning requires prompts to tune on and others to check on, got {len(self.prompts)} and "
                f"{len(self.held_out)}"
            )
        both = set(self.prompts) & set(self.held_out)
        if both:
            raise ValueError(f"the prompt {shown(both.pop())} is among those to tune on and those to check on")
        for name, least in (("steps", 4), ("batch", 1), ("evaluations", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if not self.branches:
            raise ValueError("branches must have at least one value, got none")
        for branch in self.branches:
            check_integer("each of the branches", branch, minimum=0)
        for guidance in self.guidances:
            if not (math.isfinite(guidance) and guidance >= 0):
                raise ValueError(f"guidance must be >= 0, got {guidance}")
        object.__setattr__(self, "guidances", tuple(sorted(set(map(float, self.guidances)))))

    @property
    def scales(self) -> tuple[float | None, ...]:
        """The guidance scales from the lowest; only None for the default of the pipeline."""
        return self.guidances or (None,)
