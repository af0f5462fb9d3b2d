"""Local search: descends from the best schedule so far by single decisions, on the true error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from DeepCache.schedule import FORECASTS, ForecastRule, Step, StepSchedule
from DeepCache.tune.evaluation import Measured
from DeepCache.tune.settings import Goal

__all__ = ["FORECASTS_OF_SKIPPED", "neighbours", "search"]

FORECASTS_OF_SKIPPED: tuple[ForecastRule, ...] = ("limited", "response")
"""The forecasts of a step that becomes a skipped one; a change of the forecast leads to the others."""


def search(
    start: Iterable[StepSchedule],
    goal: Goal,
    measure: Callable[[StepSchedule], Measured],
    neighbours: Callable[[StepSchedule], Iterable[StepSchedule]],
    promise: Callable[[StepSchedule, StepSchedule], float],
    evaluations: int,
) -> tuple[StepSchedule, Measured]:
    """The best schedule found, from one or more to start with and at most so many measured neighbours.

    The neighbour with the highest promise, which is the expected gain over the current schedule, is measured first, and
    one with minus infinity never.
    """
    measured = {schedule: measure(schedule) for schedule in dict.fromkeys(start)}
    best = max(measured, key=lambda schedule: goal.rank(measured[schedule]))
    left = evaluations
    while left > 0:
        promises = {each: promise(best, each) for each in neighbours(best) if each not in measured}
        promising = sorted((each for each in promises if promises[each] > -math.inf), key=lambda each: -promises[each])
        for candidate in promising[:left]:
            left -= 1
            measured[candidate] = measure(candidate)
            if goal.rank(measured[candidate]) > goal.rank(measured[best]):
                best = candidate
                break
        else:
            break
    return best, measured[best]


def neighbours(
    schedule: StepSchedule, branches: Sequence[int], guided: bool, skipped: Sequence[ForecastRule] = ()
) -> Iterator[StepSchedule]:
    """All schedules one decision away: a full step moved, added or removed; one step shallow or skipped; another kind,
    forecast, branch or guidance reuse for the steps after a full step, or for all; guidance reuse at a full step.

    The skip branches, guidance reuse if `guided`, and the forecasts of skipped steps are those to choose from.

    Example:
        >>> schedule = StepSchedule((Step(True), Step(False), Step(False)))
        >>> sorted({each.pattern(3) for each in neighbours(schedule, branches=[0], guided=False)})
        ['F..', 'F.F', 'FF.']
        >>> found = neighbours(schedule, branches=[0], guided=False, skipped=["limited", "response"])
        >>> sorted({each.pattern(3) for each in found} - {'F..', 'F.F', 'FF.'})
        ['F--', 'F-.', 'F.-']
    """
    seen = {schedule}
    for each in _changed(schedule.each, branches, guided, skipped):
        made = StepSchedule(each)
        if made not in seen:
            seen.add(made)
            yield made


def _changed(
    each: tuple[Step, ...], branches: Sequence[int], guided: bool, skipped: Sequence[ForecastRule]
) -> Iterator[tuple[Step, ...]]:
    full_steps = [number for number, step in enumerate(each) if step.full]
    others = [number for number, step in enumerate(each) if not step.full]
    for full in full_steps[1:]:
        yield from _without(each, full, branches, guided)
    for number in others:
        yield _with(each, {number: Step(True)})
    spans = [range(first + 1, last) for first, last in zip(full_steps, [*full_steps[1:], len(each)], strict=True)]
    for span in [others, *filter(len, spans)]:
        for changed in _changed_spans([each[number] for number in span], branches, guided, skipped):
            yield _with(each, dict(zip(span, changed, strict=True)))
    for number in others:
        step = each[number]
        for branch in branches:
            yield _with(each, {number: _with_branch(branch, step)})
        if step.skipped:
            yield _with(each, {number: _shallow(branches[0], step)})
        for forecast in skipped:
            if step.shallow and forecast in FORECASTS_OF_SKIPPED:
                yield _with(each, {number: _skipped(forecast, step)})


def _without(each: tuple[Step, ...], full: int, branches: Sequence[int], guided: bool) -> Iterator[tuple[Step, ...]]:
    """A full step removed, moved, shallow, or with guidance reuse."""
    # It becomes like the nearest step before it that is not full, or else after it.
    near = [step for step in (*reversed(each[:full]), *each[full:]) if not step.full]
    like = near[0] if near else Step(False, branches[0], "limited")
    yield _with(each, {full: like})
    for moved in (full - 1, full + 1):
        if moved < len(each) and not each[moved].full:
            yield _with(each, {full: like, moved: Step(True)})
    yield _with(each, {full: _shallow(branches[0], like)})
    if guided:
        halved = Step(True, forecast="linear", guidance_reuse=True)
        yield _with(each, {full: Step(True) if each[full].guidance_reuse else halved})


def _changed_spans(
    steps: list[Step], branches: Sequence[int], guided: bool, skipped: Sequence[ForecastRule]
) -> Iterator[list[Step]]:
    """The steps between two full ones, or all that are not full, after one decision for all of them."""
    for forecast in FORECASTS:
        suits = [forecast in skipped if step.skipped else forecast != "response" for step in steps]
        yield [replace(step, forecast=forecast) if fits else step for step, fits in zip(steps, suits, strict=True)]
    for forecast in skipped:
        if forecast in FORECASTS_OF_SKIPPED:
            yield [_skipped(forecast, step) for step in steps]
    for branch in branches:
        yield [_with_branch(branch, step) for step in steps]
        yield [_shallow(branch, step) for step in steps]
    if guided:
        yield [step if step.skipped else replace(step, guidance_reuse=True) for step in steps]
        yield [replace(step, guidance_reuse=False) for step in steps]


def _with_branch(branch: int, step: Step) -> Step:
    return replace(step, branch=branch) if step.shallow else step


def _skipped(forecast: ForecastRule, step: Step) -> Step:
    """A skipped step instead of a shallow one."""
    return step if step.skipped else Step(False, forecast=forecast, skipped=True)


def _shallow(branch: int, step: Step) -> Step:
    """A shallow step instead of a skipped one."""
    return Step(False, branch, "limited") if step.skipped else step


def _with(each: tuple[Step, ...], changed: dict[int, Step]) -> tuple[Step, ...]:
    return tuple(changed.get(number, step) for number, step in enumerate(each))
