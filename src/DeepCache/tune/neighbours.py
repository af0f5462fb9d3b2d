"""The schedules that differ from one in a single decision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from DeepCache.schedule import FORECASTS, Step, StepSchedule

__all__ = ["neighbours"]

_DEFAULT = Step(False, forecast="linear")


def neighbours(schedule: StepSchedule, branches: Sequence[int], guided: bool) -> Iterator[StepSchedule]:
    """All schedules that are one decision away: a full step elsewhere, one more or one fewer; another forecast, branch
    or guidance reuse for the shallow steps after a full step, or for all; guidance reuse at a full step.

    Args:
        schedule: where to start from.
        branches: the skip branches to choose from.
        guided: whether guidance reuse can be had.

    Example:
        >>> schedule = StepSchedule((Step(True), Step(False), Step(False)))
        >>> sorted({each.pattern(3) for each in neighbours(schedule, branches=[0], guided=False)})
        ['F..', 'F.F', 'FF.']
    """
    seen = {schedule}
    for each in _all(schedule.each, branches, guided):
        made = StepSchedule(each)
        if made not in seen:
            seen.add(made)
            yield made


def _all(each: tuple[Step, ...], branches: Sequence[int], guided: bool) -> Iterator[tuple[Step, ...]]:
    full_steps = [number for number, step in enumerate(each) if step.full]
    for full in full_steps[1:]:
        without = _with(each, {full: _like(each, full)})
        yield without
        for moved in (full - 1, full + 1):
            if moved < len(each) and not each[moved].full:
                yield _with(without, {moved: Step(True)})
        if guided:
            halved = Step(True, forecast="linear", guidance_reuse=True)
            yield _with(each, {full: Step(True) if each[full].guidance_reuse else halved})
    for number, step in enumerate(each):
        if not step.full:
            yield _with(each, {number: Step(True)})
    spans = [range(first + 1, last) for first, last in zip(full_steps, [*full_steps[1:], len(each)], strict=True)]
    everything = [number for number, step in enumerate(each) if not step.full]
    for span in [everything, *filter(len, spans)]:
        for change in _changes(branches, guided):
            yield _with(each, {number: replace(each[number], **change) for number in span})
    for number in everything:
        for branch in branches:
            yield _with(each, {number: replace(each[number], branch=branch)})


def _changes(branches: Sequence[int], guided: bool) -> Iterator[dict[str, Any]]:
    for forecast in FORECASTS:
        yield {"forecast": forecast}
    for branch in branches:
        yield {"branch": branch}
    if guided:
        yield {"guidance_reuse": True}
        yield {"guidance_reuse": False}


def _like(each: tuple[Step, ...], number: int) -> Step:
    """A shallow step like the one nearest before, else after."""
    others = [*reversed(each[:number]), *each[number:]]
    return next((step for step in others if not step.full), _DEFAULT)


def _with(each: tuple[Step, ...], changed: dict[int, Step]) -> tuple[Step, ...]:
    return tuple(changed.get(number, step) for number, step in enumerate(each))
