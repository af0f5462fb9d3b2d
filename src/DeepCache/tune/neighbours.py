"""The schedules that differ from one in a single decision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from DeepCache.schedule import FORECASTS, ForecastRule, Step, StepSchedule

__all__ = ["neighbours"]

# Those that are tried where a step becomes a skipped one; others are reached by a change of the forecast.
_FORECASTS_OF_SKIPPED: tuple[ForecastRule, ...] = ("limited", "response")


def neighbours(
    schedule: StepSchedule, branches: Sequence[int], guided: bool, skipped: Sequence[ForecastRule] = ()
) -> Iterator[StepSchedule]:
    """All schedules that are one decision away: a full step elsewhere, one more or one fewer; one step shallow or
    skipped; another kind, forecast, branch or guidance reuse for the steps after a full step, or for all; guidance
    reuse at a full step.

    Args:
        schedule: where to start from.
        branches: the skip branches to choose from.
        guided: whether guidance reuse can be had.
        skipped: the forecasts that skipped steps may take; none where no step can be skipped.

    Example:
        >>> schedule = StepSchedule((Step(True), Step(False), Step(False)))
        >>> sorted({each.pattern(3) for each in neighbours(schedule, branches=[0], guided=False)})
        ['F..', 'F.F', 'FF.']
        >>> found = neighbours(schedule, branches=[0], guided=False, skipped=["limited", "response"])
        >>> sorted({each.pattern(3) for each in found} - {'F..', 'F.F', 'FF.'})
        ['F--', 'F-.', 'F.-']
    """
    seen = {schedule}
    for each in _all(schedule.each, branches, guided, skipped):
        made = StepSchedule(each)
        if made not in seen:
            seen.add(made)
            yield made


def _all(
    each: tuple[Step, ...], branches: Sequence[int], guided: bool, skipped: Sequence[ForecastRule]
) -> Iterator[tuple[Step, ...]]:
    full_steps = [number for number, step in enumerate(each) if step.full]
    for full in full_steps[1:]:
        without = _with(each, {full: _like(each, full, branches[0])})
        yield without
        for moved in (full - 1, full + 1):
            if moved < len(each) and not each[moved].full:
                yield _with(without, {moved: Step(True)})
        yield _with(each, {full: _shallow(branches[0], without[full])})
        if guided:
            halved = Step(True, forecast="linear", guidance_reuse=True)
            yield _with(each, {full: Step(True) if each[full].guidance_reuse else halved})
    for number, step in enumerate(each):
        if not step.full:
            yield _with(each, {number: Step(True)})
    spans = [range(first + 1, last) for first, last in zip(full_steps, [*full_steps[1:], len(each)], strict=True)]
    everything = [number for number, step in enumerate(each) if not step.full]
    for span in [everything, *filter(len, spans)]:
        for change in _changes(branches, guided, skipped):
            yield _with(each, {number: change(each[number]) for number in span})
    for number in everything:
        for branch in branches:
            yield _with(each, {number: _with_branch(branch, each[number])})
        if each[number].skipped:
            yield _with(each, {number: _shallow(branches[0], each[number])})
        for forecast in skipped:
            if each[number].shallow and forecast in _FORECASTS_OF_SKIPPED:
                yield _with(each, {number: _skip(forecast, each[number])})


def _changes(
    branches: Sequence[int], guided: bool, skipped: Sequence[ForecastRule]
) -> Iterator[Callable[[Step], Step]]:
    for forecast in FORECASTS:
        yield partial(_with_forecast, forecast, skipped)
    for forecast in skipped:
        if forecast in _FORECASTS_OF_SKIPPED:
            yield partial(_skip, forecast)
    for branch in branches:
        yield partial(_with_branch, branch)
        yield partial(_shallow, branch)
    if guided:
        yield lambda step: step if step.skipped else replace(step, guidance_reuse=True)
        yield lambda step: replace(step, guidance_reuse=False)


def _with_forecast(forecast: ForecastRule, skipped: Sequence[ForecastRule], step: Step) -> Step:
    """The step with another forecast, where it suits its kind."""
    suits = forecast in skipped if step.skipped else forecast != "response"
    return replace(step, forecast=forecast) if suits else step


def _with_branch(branch: int, step: Step) -> Step:
    return replace(step, branch=branch) if step.shallow else step


def _skip(forecast: ForecastRule, step: Step) -> Step:
    """A skipped step instead of a shallow one; one that is skipped already is kept."""
    return step if step.skipped else Step(False, forecast=forecast, skipped=True)


def _shallow(branch: int, step: Step) -> Step:
    """A shallow step instead of a skipped one; one that is shallow already is kept."""
    return Step(False, branch, "limited") if step.skipped else step


def _like(each: tuple[Step, ...], number: int, branch: int) -> Step:
    """A step like the one nearest before that is not full, else after."""
    others = [*reversed(each[:number]), *each[number:]]
    return next((step for step in others if not step.full), Step(False, branch, "limited"))


def _with(each: tuple[Step, ...], changed: dict[int, Step]) -> tuple[Step, ...]:
    return tuple(changed.get(number, step) for number, step in enumerate(each))
