import itertools
import math

import pytest

from DeepCache.schedule import Step, StepSchedule
from DeepCache.tune.evaluation import Measured
from DeepCache.tune.search import neighbours, search
from DeepCache.tune.settings import Goal

# What each step adds to the fidelity where it is full.
WORTH = (5.0, 1.0, 2.0, 3.0, 4.5, 6.0, 8.0)


def of_pattern(text):
    return StepSchedule(tuple(Step(character == "F") for character in text))


EVERYTHING = [of_pattern("F" + "".join(rest)) for rest in itertools.product("F.", repeat=len(WORTH) - 1)]


def synthetic(schedule):
    full = [step.full for step in schedule.each]
    return Measured(sum(full) / len(full), sum(itertools.compress(WORTH, full)), 0.5, 1.0)


def near(schedule):
    """One full step more, fewer or elsewhere, and nothing else."""
    found = {of_pattern(each.pattern(len(WORTH))): None for each in neighbours(schedule, [0], guided=False)}
    return [each for each in found if each != schedule]


class Bench:
    """Measures by hand and notes what was asked for."""

    def __init__(self, start=()):
        self.start = [of_pattern(text) for text in start]
        self.generated = []

    def measure(self, schedule):
        self.generated.append(schedule)
        return synthetic(schedule)

    @property
    def candidates(self):
        return self.generated[len(self.start) :]

    def search(self, goal, promise, evaluations=1000):
        return search(self.start, goal, self.measure, near, promise, evaluations)


def gain(current, candidate):
    return synthetic(candidate).psnr - synthetic(current).psnr


def nothing_known(current, candidate):
    return 0.0


def best_of_all(goal):
    return max(EVERYTHING, key=lambda schedule: goal.rank(synthetic(schedule)))


@pytest.mark.parametrize("promise", [gain, nothing_known])
@pytest.mark.parametrize(
    "goal",
    [Goal(cost=0.15), Goal(cost=0.3), Goal(cost=3 / 7), Goal(cost=0.9), Goal(psnr=18.5), Goal(psnr=29.5)],
    ids=str,
)
@pytest.mark.parametrize("start", [["FF....."], ["FFFFFFF"], ["FF.F...", "F.F.F.F", "F......"]], ids=str)
def test_the_search_finds_the_best_schedule(start, goal, promise):
    bench = Bench(start)
    found, measured = bench.search(goal, promise)
    assert measured == synthetic(found)
    assert goal.met_by(measured.cost, measured.psnr)
    assert goal.rank(measured) == goal.rank(synthetic(best_of_all(goal)))


def test_the_search_stays_at_the_best_schedule():
    goal = Goal(cost=3 / 7)
    bench = Bench([best_of_all(goal).pattern(7)])
    assert bench.search(goal, gain)[0] == bench.start[0]
    assert set(bench.candidates) == set(near(bench.start[0]))


@pytest.mark.parametrize("promise", [gain, nothing_known])
@pytest.mark.parametrize("evaluations", [0, 1, 2, 5, 9])
def test_the_search_measures_at_most_the_allowed_candidates_and_none_twice(evaluations, promise):
    bench = Bench(["FF.....", "F.F...."])
    found, _ = bench.search(Goal(cost=0.6), promise, evaluations)
    assert bench.generated[:2] == bench.start
    assert len(bench.candidates) == evaluations
    assert len(set(bench.generated)) == len(bench.generated)
    assert found in bench.generated


def test_the_search_returns_the_best_measured_schedule():
    for evaluations in range(20):
        for goal in (Goal(cost=0.5), Goal(psnr=14)):
            bench = Bench(["F......"])
            _, measured = bench.search(goal, nothing_known, evaluations)
            assert goal.rank(measured) == max(goal.rank(synthetic(each)) for each in bench.generated)


def test_the_most_promising_candidate_is_measured_first():
    bench = Bench(["F......"])
    bench.search(Goal(cost=0.5), gain, evaluations=1)
    assert [each.pattern(7) for each in bench.candidates] == ["F.....F"]
    bench = Bench(["F......"])
    bench.search(Goal(cost=0.5), lambda current, candidate: -gain(current, candidate), evaluations=1)
    assert [each.pattern(7) for each in bench.candidates] == ["FF....."]


def test_candidates_without_promise_are_not_measured():
    bench = Bench(["F.F...."])
    found, _ = bench.search(Goal(cost=0.9), lambda *_: -math.inf)
    assert (found, bench.candidates) == (bench.start[0], [])

    def within_half(current, candidate):
        return -math.inf if synthetic(candidate).cost > 0.5 else gain(current, candidate)

    bench = Bench(["F.F...."])
    found, _ = bench.search(Goal(cost=0.9), within_half)
    assert all(synthetic(each).cost <= 0.5 for each in bench.generated)
    assert found == best_of_all(Goal(cost=0.5))


def test_promises_are_relative_to_the_best_schedule_so_far():
    asked = []

    def promise(current, candidate):
        asked.append(current)
        return gain(current, candidate)

    bench = Bench(["F......"])
    bench.search(Goal(cost=0.5), promise)
    best = [synthetic(current).psnr for current in dict.fromkeys(asked)]
    assert best == sorted(best)
    assert len(best) > 2


def test_the_search_moves_from_a_start_that_misses_the_goal():
    found, measured = Bench(["FFFFFF."]).search(Goal(cost=0.3), nothing_known)
    assert measured.cost <= 0.3
    assert found == best_of_all(Goal(cost=0.3))
    _, measured = Bench(["F......"]).search(Goal(psnr=20), nothing_known)
    assert measured.psnr >= 20


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give one goal: a cost .or a speed-up., or a PSNR"),
        ({"cost": 0.3, "psnr": 30}, "give one goal"),
        ({"cost": 0}, "cost must be a share between 0 and 1, got 0"),
        ({"cost": 1}, "cost must be a share between 0 and 1, got 1"),
        ({"cost": -0.5}, "got -0.5"),
        ({"cost": math.nan}, "cost .* got nan"),
        ({"psnr": 0}, "psnr must be a number of dB above 0, got 0"),
        ({"psnr": -3}, "psnr .* got -3"),
        ({"psnr": 120}, "psnr must be below 120 dB, which stands for images identical .*, got 120"),
        ({"psnr": math.inf}, "psnr .* got inf"),
        ({"psnr": math.nan}, "psnr .* got nan"),
    ],
)
def test_invalid_goals_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Goal(**values)


def test_a_goal_is_met_at_its_exact_value():
    assert Goal(cost=0.3).met_by(cost=0.1 + 0.2, psnr=3)
    assert not Goal(cost=0.3).met_by(cost=0.301, psnr=99)
    assert Goal(psnr=30).met_by(cost=1, psnr=30)
    assert not Goal(psnr=30).met_by(cost=0.1, psnr=29.9)


@pytest.mark.parametrize(
    ("goal", "rising"),
    [
        # Too dear: the cheaper the better. Within the goal: the closer, then the cheaper.
        (Goal(cost=0.3), [(0.9, 99), (0.4, 20), (0.2, 25), (0.3, 30), (0.25, 30), (0.3, 31)]),
        # Too far off: the closer the better. Within the goal: the cheaper, then the closer.
        (Goal(psnr=30), [(0.1, 10), (0.5, 29), (0.6, 31), (0.4, 30), (0.4, 35), (0.3, 30)]),
    ],
    ids=str,
)
def test_ranks_order_schedules_by_the_goal(goal, rising):
    ranks = [goal.rank(Measured(cost, psnr, 0.9, 1.0)) for cost, psnr in rising]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == len(ranks)


def test_a_goal_has_a_readable_form():
    assert str(Goal(cost=0.25)) == "cost ≤ 0.250"
    assert str(Goal(psnr=32.5)) == "PSNR ≥ 32.5 dB"
