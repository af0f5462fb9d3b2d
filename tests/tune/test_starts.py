import pytest

from DeepCache.engine.cost import Costs
from DeepCache.schedule import FORECASTS, Step, StepSchedule
from DeepCache.tune.best_schedules import ExpectedSchedule
from DeepCache.tune.evaluation import Measured
from DeepCache.tune.settings import Goal
from DeepCache.tune.starts import evenly_spread, kinds_of_steps, measure_uniform, skipped_twins, spread_to_the_goal

CALLS = 20
COSTS = Costs(full=100, shallow={0: 10}, channels={0: 8})
KINDS = {"limited": Step(False, forecast="limited"), "skipped": Step(False, forecast="response", skipped=True)}


class Measuring:
    """A decibel for every full step, two more with shallow steps, and the cost by hand."""

    def __init__(self):
        self.patterns = []

    def measure(self, schedule):
        self.patterns.append(schedule.pattern(CALLS))
        full = schedule.full_steps(CALLS)
        shallow = sum(step.shallow for step in schedule.each)
        return Measured((full + 0.1 * shallow) / CALLS, full + 2.0 * bool(shallow), 0.5, 1.0)


@pytest.fixture
def measuring():
    return Measuring()


def test_impossible_kinds_are_omitted():
    shallow = ["none", "linear", "quadratic", "limited"]
    assert list(kinds_of_steps(0, guided=False, skipped=())) == shallow
    without_response = [name for name in FORECASTS if name != "response"]
    assert list(kinds_of_steps(0, guided=False, skipped=without_response)) == [*shallow, "skipped, limited"]
    kinds = kinds_of_steps(3, guided=True, skipped=FORECASTS)
    assert kinds["limited, guidance reuse"] == Step(False, 3, "limited", guidance_reuse=True)
    assert kinds["skipped, response"] == Step(False, forecast="response", skipped=True)


@pytest.mark.parametrize(
    ("full", "pattern"), [(1, "F......"), (2, "F..F..."), (3, "F.F.F.."), (6, "FFFFFF."), (7, "FFFFFFF")]
)
def test_full_steps_are_evenly_spread(full, pattern):
    assert evenly_spread(7, full, Step(False)).pattern(7) == pattern


def test_for_a_cost_uniform_schedules_between_half_and_all_of_it_are_measured(measuring):
    found = measure_uniform(KINDS, CALLS, Goal(cost=0.4), COSTS, measuring.measure)
    # Shallow steps: 0.415 at an interval of 3, 0.19 at 10.
    assert list(found) == [
        *("interval 4, limited", "interval 5, limited", "interval 6, limited", "interval 8, limited"),
        *("interval 3, skipped", "interval 4, skipped", "interval 5, skipped", "interval 6, skipped"),
    ]
    schedule, measured = found["interval 5, skipped"]
    assert schedule.pattern(CALLS) == "F----" * 4
    assert measured == Measured(0.2, 4.0, 0.5, 1.0)


def test_for_a_fidelity_bisection_finds_the_largest_interval(measuring):
    goal = Goal(psnr=6)
    found = measure_uniform(KINDS, CALLS, goal, COSTS, measuring.measure)
    met = {name for name, (_, measured) in found.items() if goal.met_by(measured.cost, measured.psnr)}
    assert {"interval 6, limited", "interval 3, skipped"} <= met
    assert {"interval 8, limited", "interval 4, skipped"} <= set(found) - met
    assert len(measuring.patterns) == len(found) <= 6


def test_for_a_cost_each_kind_has_as_many_full_steps_as_it_allows(measuring):
    goal = Goal(cost=0.4)
    uniform = measure_uniform(KINDS, CALLS, goal, COSTS, measuring.measure)
    found = spread_to_the_goal(KINDS, uniform, CALLS, goal, COSTS, measuring.measure)
    # Both come to 7 dB in their best uniform schedule, the shallow ones at less; 6 + 1.4 of 20, and 8 of 20.
    assert found == [evenly_spread(CALLS, 6, KINDS["limited"]), evenly_spread(CALLS, 8, KINDS["skipped"])]


def test_a_kind_that_is_too_expensive_is_omitted(measuring):
    found = spread_to_the_goal(KINDS, {}, CALLS, Goal(cost=0.1), COSTS, measuring.measure)
    assert [each.pattern(CALLS) for each in found] == ["F---------F---------"]
    only = {"limited": KINDS["limited"]}
    (cheapest,) = spread_to_the_goal(only, {}, CALLS, Goal(cost=0.06), COSTS, measuring.measure)
    assert cheapest == evenly_spread(CALLS, 1, KINDS["limited"])


def test_for_a_fidelity_each_kind_has_as_few_full_steps_as_needed(measuring):
    goal = Goal(psnr=9)
    uniform = measure_uniform(KINDS, CALLS, goal, COSTS, measuring.measure)
    found = spread_to_the_goal(KINDS, uniform, CALLS, goal, COSTS, measuring.measure)
    assert set(found) == {evenly_spread(CALLS, 9, KINDS["skipped"]), evenly_spread(CALLS, 7, KINDS["limited"])}
    assert len(set(measuring.patterns)) == len(measuring.patterns)


def test_an_unreachable_fidelity_leaves_one_step_that_is_not_full(measuring):
    found = spread_to_the_goal(KINDS, {}, CALLS, Goal(psnr=100), COSTS, measuring.measure)
    assert [each.full_steps(CALLS) for each in found] == [CALLS - 1] * 2


def test_twins_have_skipped_steps_and_start_from_the_cheapest():
    schedules = [evenly_spread(8, full, Step(False, 2, "linear")) for full in (4, 2)]
    twins = skipped_twins([ExpectedSchedule(each, 0.9, 1.0) for each in schedules], FORECASTS)
    assert [each.schedule.pattern(8) for each in twins] == ["F---F---"] * 2 + ["F-F-F-F-"] * 2
    assert [each.cost for each in twins] == [0.25, 0.25, 0.5, 0.5]
    assert {step.forecast for each in twins for step in each.schedule.each if step.skipped} == {"limited", "response"}
    assert skipped_twins([ExpectedSchedule(StepSchedule((Step(True),)), 1.0, 0.0)], ()) == []
