"""What to tune for and on, as one validated, frozen value."""

from __future__ import annotations

import math
from dataclasses import dataclass

from DeepCache.schedule import check_integer
from DeepCache.text import shown
from DeepCache.tune.search import Goal

__all__ = ["TuningSettings"]


@dataclass(frozen=True)
class TuningSettings:
    """What to tune for and on.

    Args:
        prompts (`tuple` of `str`):
            Prompts that the search generates.
        held_out (`tuple` of `str`):
            Prompts on which the winner is checked at the end; none of `prompts`.
        steps (`int`):
            Denoising steps.
        goal (`Goal`):
            What is wanted.
        model (`str`):
            The name that the model was loaded by, for the record.
        guidances (`tuple` of `float`, defaults to `()`):
            The guidance scales, in any order. Every prompt is generated at each of them and all count alike; the plan
            then holds from the lowest to the highest. By default the pipeline's own scale.
        seed (`int`, defaults to `0`):
            Seed of the first prompt; each further one has the next number.
        batch (`int`, defaults to `8`):
            Prompts in one pipeline call.
        evaluations (`int`, defaults to `40`):
            Schedules that the search generates with at most, beyond those it starts from.
        branches (`tuple` of `int`, defaults to `(0,)`):
            Skip branches that shallow steps may use; the first is the one that everything starts from.

    Raises:
        ValueError: a value is out of its range.
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
                f"tuning takes prompts to tune on and others to check on, got {len(self.prompts)} and "
                f"{len(self.held_out)}"
            )
        both = set(self.prompts) & set(self.held_out)
        if both:
            raise ValueError(f"the prompt {shown(both.pop())} is among those to tune on and those to check on")
        for name, least in (("steps", 4), ("batch", 1), ("evaluations", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if not self.branches:
            raise ValueError("branches must name one skip branch or more, got none")
        for branch in self.branches:
            check_integer("each of the branches", branch, minimum=0)
        for guidance in self.guidances:
            if not (math.isfinite(guidance) and guidance >= 0):
                raise ValueError(f"guidance must be a number from 0, got {guidance}")
        object.__setattr__(self, "guidances", tuple(sorted(set(map(float, self.guidances)))))

    @property
    def scales(self) -> tuple[float | None, ...]:
        """The guidance scales from the lowest; None alone stands for the pipeline's own."""
        return self.guidances or (None,)
