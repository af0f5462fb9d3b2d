"""Combines segments to the best schedules at every cost, with a dynamic programme.

A segment is a full step and the steps after it, up to the next full step; `segment_errors` measures their errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from DeepCache.schedule import ForecastRule, Step, StepSchedule

__all__ = ["ExpectedSchedule", "best_schedules", "predicted_error"]

_SHALLOW, _REUSE, _SKIPPED = 0, 1, 2


@dataclass(frozen=True)
class ExpectedSchedule:
    """A schedule with its cost, a share of that without DeepCache, and the sum of the errors of its segments."""

    schedule: StepSchedule
    cost: float
    error: float


def best_schedules(
    errors: torch.Tensor, branch: int, share: float, prices: Sequence[float], skipped: ForecastRule = "response"
) -> list[ExpectedSchedule]:
    """The Pareto-optimal schedules in cost and error, as far as these prices find them, from the cheapest.

    For each price the dynamic programme finds the schedule with the lowest error + price x cost. Its state is a full
    step and the distance to the last one, since these two determine the forecasts.

    Args:
        errors: (steps, gaps, lengths, kinds), the error that each segment adds; see `SegmentErrors.measure`. Without
            the third kind no step is skipped.
        branch: the skip branch of shallow steps.
        share: cost of a shallow step as a share of that of a full one.
        prices: the error that equals the whole cost of a run.
        skipped: the forecast of skipped steps.
    """
    steps = errors.shape[0]
    # [b, g, m, option]: shallow steps without the forecast; then those with it, then skipped ones.
    without = errors[:, :1, :, :_SKIPPED].expand(-1, errors.shape[1], -1, -1)
    options = torch.cat([without, errors], dim=3)
    lengths = torch.arange(errors.shape[2], dtype=errors.dtype)
    costs_between = torch.tensor([share, share / 2, share, share / 2, 0.0], dtype=errors.dtype)[: options.shape[3]]
    costs = (1 + lengths[:, None] * costs_between) / steps
    found: dict[StepSchedule, ExpectedSchedule] = {}
    for price in prices:
        best, chosen = (options + price * costs).min(dim=3)
        each: list[Step] = []
        error = cost = 0.0
        for full, gap, length in _cheapest_path(best.tolist()):
            option = int(chosen[full, gap, length])
            error += float(options[full, gap, length, option])
            cost += float(costs[length, option])
            if option == 2 + _SKIPPED:
                between = Step(False, forecast=skipped, skipped=True)
            else:
                between = Step(False, branch, "linear" if option // 2 and gap else "none", option % 2 == _REUSE)
            each += [Step(True), *[between] * length]
        schedule = StepSchedule(tuple(each))
        found[schedule] = ExpectedSchedule(schedule, cost, error)
    lowest = math.inf
    kept = []
    for candidate in sorted(found.values(), key=lambda found: (found.cost, found.error)):
        if candidate.error < lowest:
            kept.append(candidate)
            lowest = candidate.error
    return kept


def predicted_error(errors: torch.Tensor, schedule: StepSchedule) -> float | None:
    """The sum of the errors of a schedule's segments; None if one was not measured.

    The error of a segment with several kinds of steps is the mean of the errors with each.
    """
    full_steps = [number for number, step in enumerate(schedule.each) if step.full]
    total, last = 0.0, 0
    for full, following in zip(full_steps, [*full_steps[1:], len(schedule.each)], strict=True):
        length, gap = following - full - 1, full - last
        last = full
        found = []
        for step in schedule.each[full + 1 : following]:
            kind = _SKIPPED if step.skipped else _REUSE if step.guidance_reuse else _SHALLOW
            reached = gap if step.forecast != "none" else 0
            if reached >= errors.shape[1] or length >= errors.shape[2] or kind >= errors.shape[3]:
                return None
            found.append(float(errors[full, reached, length, kind]))
        total += fmean(found) if found else 0.0
    return total


def _cheapest_path(segment: list[list[list[float]]]) -> list[tuple[int, int, int]]:
    """The segments (full step, gap before it, other steps after it) with the lowest sum that fill the run."""
    steps, gaps, lengths = len(segment), len(segment[0]), len(segment[0][0])
    totals = [[math.inf] * gaps for _ in range(steps)]
    totals[0][0] = 0.0
    came_from: dict[tuple[int, int], tuple[int, int]] = {}
    end, end_total = (0, 0), math.inf
    for full in range(steps):
        for gap in range(gaps):
            here = totals[full][gap]
            if here == math.inf:
                continue
            for length in range(min(lengths, steps - full)):
                total, following = here + segment[full][gap][length], full + length + 1
                if following == steps:
                    if total < end_total:
                        end, end_total = (full, gap), total
                elif total < totals[following][length + 1]:
                    totals[following][length + 1] = total
                    came_from[following, length + 1] = (full, gap)
    path, following = [], steps
    while True:
        full, gap = end
        path.append((full, gap, following - full - 1))
        if full == 0:
            return path[::-1]
        following, end = full, came_from[end]
