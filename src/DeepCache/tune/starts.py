"""Schedules from which the search starts: evenly spread full steps, with each kind of step between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from DeepCache.engine.cost import Costs
from DeepCache.schedule import FORECASTS, ForecastRule, Step, StepSchedule, mean_cost
from DeepCache.tune.best_schedules import ExpectedSchedule
from DeepCache.tune.evaluation import Measured
from DeepCache.tune.search import FORECASTS_OF_SKIPPED
from DeepCache.tune.settings import Goal

__all__ = ["evenly_spread", "kinds_of_steps", "measure_uniform", "skipped_twins", "spread_to_the_goal"]

_INTERVALS = (2, 3, 4, 5, 6, 8, 10)

# For how many kinds of steps the best number of full ones is searched.
_KINDS_TO_SPREAD = 3

Uniform = dict[str, tuple[StepSchedule, Measured]]
Measure = Callable[[StepSchedule], Measured]


def kinds_of_steps(branch: int, guided: bool, skipped: Sequence[ForecastRule]) -> dict[str, Step]:
    """Kinds of steps between full ones, by name; the forecasts are those that skipped steps can have."""
    kinds: dict[str, Step] = {}
    for forecast in FORECASTS:
        if forecast != "response":
            kinds[forecast] = Step(False, branch, forecast)
            if guided and forecast in ("linear", "limited"):
                kinds[f"{forecast}, guidance reuse"] = Step(False, branch, forecast, guidance_reuse=True)
    for forecast in FORECASTS_OF_SKIPPED:
        if forecast in skipped:
            kinds[f"skipped, {forecast}"] = Step(False, forecast=forecast, skipped=True)
    return kinds


def evenly_spread(calls: int, full: int, between: Step) -> StepSchedule:
    """So many full steps, evenly spread."""
    at = {number * calls // full for number in range(full)}
    return StepSchedule(tuple(Step(True) if number in at else between for number in range(calls)))


def measure_uniform(kinds: dict[str, Step], calls: int, goal: Goal, costs: Costs, measure: Measure) -> Uniform:
    """Measures the uniform schedules of every kind of step that are close to the goal.

    For a cost these are the schedules that cost at most as much and at least half as much. For a fidelity the largest
    interval that has it is found by bisection.
    """
    found: Uniform = {}
    for kind, between in kinds.items():
        schedules = {
            interval: StepSchedule(tuple(between if number % interval else Step(True) for number in range(calls)))
            for interval in _INTERVALS
            if interval <= calls // 2
        }
        left = list(schedules)
        if goal.cost is not None:
            shares = {interval: mean_cost(schedules[interval].each, costs) for interval in left}
            left = [each for each in left if goal.cost / 2 <= shares[each] and goal.met_by(shares[each], 0.0)]
        while left:
            at = 0 if goal.cost is not None else len(left) // 2
            schedule = schedules[left[at]]
            measured = measure(schedule)
            found[f"interval {left[at]}, {kind}"] = schedule, measured
            good = goal.cost is not None or goal.met_by(measured.cost, measured.psnr)
            left = left[at + 1 :] if good else left[:at]
    return found


def spread_to_the_goal(
    kinds: dict[str, Step], uniform: Uniform, calls: int, goal: Goal, costs: Costs, measure: Measure
) -> list[StepSchedule]:
    """For the best kinds of steps, the evenly spread schedules with as many full steps as a cost allows, or with as few
    as a fidelity requires; `uniform` is what `measure_uniform` found."""
    best_first = sorted(uniform.values(), key=lambda each: goal.rank(each[1]), reverse=True)
    ordered = [step for schedule, _ in best_first for step in schedule.each if not step.full]
    found: list[StepSchedule] = []
    for between in dict.fromkeys([*ordered, *kinds.values()]):
        if len(found) == _KINDS_TO_SPREAD:
            break
        if goal.cost is not None:
            spread = [evenly_spread(calls, full, between) for full in range(calls, 0, -1)]
            found += [each for each in spread if goal.met_by(mean_cost(each.each, costs), 0.0)][:1]
        else:
            found.append(_fewest(between, uniform, calls, goal, measure))
    return found or [evenly_spread(calls, 1, min(kinds.values(), key=lambda step: step.cost(costs)))]


def skipped_twins(found: Sequence[ExpectedSchedule], forecasts: Sequence[ForecastRule]) -> list[ExpectedSchedule]:
    """The schedules with skipped steps instead of shallow ones for each forecast, from the cheapest."""
    twins: dict[StepSchedule, ExpectedSchedule] = {}
    for each in found:
        for forecast in forecasts:
            if forecast in FORECASTS_OF_SKIPPED:
                skipped = Step(False, forecast=forecast, skipped=True)
                twin = StepSchedule(tuple(step if step.full else skipped for step in each.schedule.each))
                cost = twin.full_steps(len(twin.each)) / len(twin.each)
                twins[twin] = ExpectedSchedule(twin, cost, each.error)
    return sorted(twins.values(), key=lambda each: each.cost)


def _fewest(between: Step, uniform: Uniform, calls: int, goal: Goal, measure: Measure) -> StepSchedule:
    """The evenly spread schedule with the fewest full steps that meets the goal, by bisection."""
    known = [
        (schedule.full_steps(calls), goal.met_by(measured.cost, measured.psnr))
        for schedule, measured in uniform.values()
        if between in schedule.each
    ]
    enough = min((full for full, met in known if met), default=calls)
    too_few = max((full for full, met in known if not met and full < enough), default=0)
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        measured = measure(evenly_spread(calls, middle, between))
        if goal.met_by(measured.cost, measured.psnr):
            enough = middle
        else:
            too_few = middle
    # With full steps alone nothing would be gained.
    return evenly_spread(calls, min(enough, calls - 1), between)
