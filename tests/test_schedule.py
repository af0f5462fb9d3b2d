import json
import math

import pytest

from DeepCache.engine.cost import Costs
from DeepCache.schedule import (
    AdaptiveSchedule,
    BranchSchedule,
    ExplicitSchedule,
    NonUniformSchedule,
    Schedule,
    Step,
    StepSchedule,
    UniformSchedule,
    WindowSchedule,
    mean_cost,
    pattern_of,
    schedule_from_dict,
)

COSTS = Costs(full=1000, shallow={0: 100, 1: 200, 2: 500}, channels={0: 8, 1: 8, 2: 8})
EACH = (
    Step(True),
    Step(False, 2, "linear"),
    Step(False, 11, "quadratic", guidance_reuse=True),
    Step(True, guidance_reuse=True),
    Step(False),
)
MIXED = (
    Step(True),
    Step(False, forecast="response", skipped=True),
    Step(False, 1, "limited"),
    Step(False, forecast="limited", skipped=True),
    Step(True),
    Step(False, forecast="none", skipped=True),
)
SCHEDULES = [
    UniformSchedule(3),
    UniformSchedule(5, branch=2),
    NonUniformSchedule(4),
    NonUniformSchedule(5, center=15, power=1.5, branch=3),
    ExplicitSchedule((0, 1, 4), branch=1),
    WindowSchedule(UniformSchedule(3), start=2, stop=7),
    WindowSchedule(ExplicitSchedule((0, 2)), start=1),
    BranchSchedule(UniformSchedule(5), after=(0, 0, 1, 3)),
    WindowSchedule(BranchSchedule(NonUniformSchedule(5), after=(2, 1)), start=1, stop=9),
    AdaptiveSchedule(threshold=0.25, interval=6, branch=1),
    StepSchedule(EACH),
    StepSchedule(MIXED),
]


def full_steps(schedule, steps):
    return [number for number, step in enumerate(schedule.steps(steps)) if step.full]


@pytest.mark.parametrize(
    ("interval", "steps", "pattern"),
    [(1, 4, "FFFF"), (2, 5, "F.F.F"), (3, 7, "F..F..F"), (5, 1, "F"), (10, 4, "F..."), (3, 0, "")],
)
def test_every_interval_th_step_is_full(interval, steps, pattern):
    schedule = UniformSchedule(interval)
    assert schedule.pattern(steps) == pattern
    assert schedule.full_steps(steps) == pattern.count("F")


@pytest.mark.parametrize("kind", [UniformSchedule, NonUniformSchedule])
def test_only_an_interval_above_one_caches(kind):
    assert kind(1).branches == ()
    assert kind(1).pattern(50) == "F" * 50
    assert kind(2, branch=4).branches == (4,)
    assert kind(2, branch=4).step(1, 50) == Step(False, 4)


@pytest.mark.parametrize(
    ("interval", "center", "power", "published"),
    [
        (5, 15, 1.4, [0, 5, 9, 13, 17, 21, 26, 31, 37, 43]),
        (5, 10, 1.5, [0, 4, 7, 10, 14, 19, 24, 30, 36, 43]),
        (3, 15, 1.3, [0, 3, 6, 8, 11, 13, 15, 17, 20, 23, 26, 29, 32, 35, 39, 42, 46]),
    ],
)
def test_the_published_non_uniform_steps(interval, center, power, published):
    assert full_steps(NonUniformSchedule(interval, center, power), 50) == published


def test_default_center_is_thirty_percent():
    for steps, center in ((50, 15), (20, 6), (31, 9), (10, 3)):
        for interval in (2, 3, 5):
            given = NonUniformSchedule(interval, center).pattern(steps)
            assert NonUniformSchedule(interval).pattern(steps) == given


@pytest.mark.parametrize("power", [1.02, 1.4, 2.5, 10])
@pytest.mark.parametrize("center", [None, 0, 1, 7, 15])
def test_non_uniform_schedule_has_as_many_full_steps_as_uniform(center, power):
    for steps in [*range(1 if center is None else center + 1, 41), 50, 100]:
        for interval in range(1, 12):
            full = full_steps(NonUniformSchedule(interval, center, power), steps)
            assert len(full) == math.ceil(steps / interval), (steps, interval)
            assert full[0] == 0, (steps, interval)


@pytest.mark.parametrize("power", [1.2, 3, 7.3])
def test_center_beyond_the_last_step_is_the_last(power):
    for steps in range(1, 41):
        for interval in range(1, 8):
            full = full_steps(NonUniformSchedule(interval, steps + 5, power), steps)
            assert full == full_steps(NonUniformSchedule(interval, steps, power), steps)
            assert len(full) == math.ceil(steps / interval)


def test_non_uniform_full_steps_are_densest_around_the_center():
    full = full_steps(NonUniformSchedule(5, center=25, power=2), 100)
    gaps = {before: after - before for before, after in zip(full, full[1:], strict=False)}
    near = [gap for step, gap in gaps.items() if 15 <= step <= 35]
    far = [gap for step, gap in gaps.items() if step > 60]
    assert max(near) < min(far)


def test_non_uniform_schedule_requires_the_number_of_steps():
    with pytest.raises(ValueError, match="depends on the number of steps, which is unknown"):
        NonUniformSchedule(3).step(1, None)
    assert UniformSchedule(3).step(1, None) == Step(False)


def test_listed_steps_are_full():
    assert ExplicitSchedule((0, 1, 4)).pattern(8) == "FF..F..."
    assert ExplicitSchedule([0, 5, 90], branch=3).pattern(7) == "F....F."
    assert ExplicitSchedule((0,), branch=3).branches == (3,)
    assert ExplicitSchedule([0, 2]) == ExplicitSchedule((0, 2))


def test_outside_its_window_every_step_is_full():
    every_third = UniformSchedule(3)
    assert WindowSchedule(every_third, start=2, stop=7).pattern(10) == "FF.F..FFFF"
    assert WindowSchedule(every_third, start=4).pattern(10) == "FFFF.." + "F..F"
    assert WindowSchedule(every_third, stop=5).pattern(8) == "F..F.FFF"
    assert WindowSchedule(every_third).pattern(8) == every_third.pattern(8)


def test_window_has_the_branches_of_its_schedule():
    assert WindowSchedule(UniformSchedule(3, branch=4), start=1).branches == (4,)
    assert WindowSchedule(UniformSchedule(1), start=1).branches == ()


def test_branch_schedule_uses_its_branches_in_order():
    schedule = BranchSchedule(UniformSchedule(5), after=(0, 0, 1, 3))
    assert schedule.pattern(12) == "F0013F0013F0"
    assert schedule.branches == (0, 1, 3)
    assert BranchSchedule(ExplicitSchedule((0, 2)), after=[2, 0, 1]).pattern(8) == "F2F20111"
    assert BranchSchedule(UniformSchedule(4), after=(2,)).pattern(6) == "F...F."
    assert BranchSchedule(UniformSchedule(4), after=(2,)).step(3, 6) == Step(False, 2)


def test_unused_branches_are_not_listed():
    assert BranchSchedule(UniformSchedule(1), after=(0, 2)).branches == ()
    assert StepSchedule((Step(True, branch=7), Step(False, 1), Step(False, 0))).branches == (0, 1)


def test_step_schedule_lists_every_step():
    schedule = StepSchedule(EACH)
    assert schedule.steps(5) == EACH
    assert schedule.pattern(5) == "F2bF0"
    assert schedule.branches == (0, 2, 11)
    with pytest.raises(ValueError, match="the schedule is for 5 steps, but this run has 6"):
        schedule.step(0, 6)


def test_stretched_schedule_keeps_relative_positions_of_full_steps():
    for pattern in ("F", "FF", "F.F.", "F..F...F.", "F..........", "FF.....F"):
        schedule = StepSchedule(Step(sign == "F", 1) for sign in pattern)
        assert schedule.stretched(len(pattern)) == schedule
        twice = schedule.stretched(2 * len(pattern))
        again = [2 * step for step in full_steps(schedule, len(pattern))]
        # Without a shallow step, all steps stay full.
        assert full_steps(twice, 2 * len(pattern)) == (again if "." in pattern else list(range(2 * len(pattern))))
        for count in range(1, 30):
            stretched = schedule.stretched(count)
            assert len(stretched.each) == count
            assert stretched.each[0] == Step(True, 1)


def test_stretched_steps_keep_branch_and_forecast():
    stretched = StepSchedule(EACH).stretched(10)
    assert stretched.pattern(10) == "F222bbF000"
    assert stretched.each[2:6] == (EACH[1], EACH[1], EACH[2], EACH[2])
    assert stretched.each[6] == EACH[3]


def test_steps_beyond_the_last_are_full_if_the_number_is_unknown():
    schedule = StepSchedule(EACH)
    assert [schedule.step(number, None) for number in range(7)] == [*EACH, Step(True), Step(True)]


def test_pattern_shows_several_branches():
    one, other = Step(False, 10), Step(False, 35)
    assert pattern_of([Step(True), one, one]) == "F.."
    assert pattern_of([Step(True), one, other]) == "Faz"
    # The branch of a full step does not count.
    assert pattern_of([Step(True, branch=4), one]) == "F."
    assert pattern_of([]) == ""


@pytest.mark.parametrize(
    ("step", "order", "cost"),
    [
        (Step(True), 0, 1),
        (Step(True, guidance_reuse=True), 0, 0.5),
        (Step(False), 0, 0.1),
        (Step(False, 2, "linear"), 1, 0.5),
        (Step(False, 1, "quadratic", guidance_reuse=True), 2, 0.1),
        (Step(False, 1, "limited"), 2, 0.2),
        (Step(False, forecast="limited", skipped=True), 2, 0),
        (Step(False, forecast="response", skipped=True), 2, 0),
        (Step(False, skipped=True), 0, 0),
    ],
)
def test_order_and_cost_of_a_step(step, order, cost):
    assert step.order == order
    assert step.cost(COSTS) == pytest.approx(cost)


@pytest.mark.parametrize(
    ("schedule", "steps", "cost"),
    [
        (UniformSchedule(5), 50, (10 + 40 * 0.1) / 50),
        (UniformSchedule(5, branch=2), 50, (10 + 40 * 0.5) / 50),
        (UniformSchedule(1), 50, 1),
        (UniformSchedule(3), 7, (3 + 4 * 0.1) / 7),
        (NonUniformSchedule(5, branch=1), 50, (10 + 40 * 0.2) / 50),
        (ExplicitSchedule((0, 1)), 10, (2 + 8 * 0.1) / 10),
        (WindowSchedule(UniformSchedule(3), start=2, stop=7), 10, (7 + 3 * 0.1) / 10),
        (BranchSchedule(UniformSchedule(4), after=(0, 1, 2)), 8, (2 + 2 * (0.1 + 0.2 + 0.5)) / 8),
        (StepSchedule((Step(True), Step(True, guidance_reuse=True), Step(False, 2, "none", True))), 3, 1.75 / 3),
        (StepSchedule(MIXED), 6, (2 + 0.2) / 6),
        (AdaptiveSchedule(0.1, 5, branch=1), 30, (4 + 26 * 0.2) / 30),
    ],
    ids=str,
)
def test_cost_by_hand(schedule, steps, cost):
    assert schedule.cost(steps, COSTS) == pytest.approx(cost, abs=1e-11)
    assert mean_cost(schedule.steps(steps), COSTS) == pytest.approx(cost)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_json_round_trip(schedule):
    text = json.dumps(schedule.to_dict())
    again = schedule_from_dict(json.loads(text))
    assert again == schedule
    assert hash(again) == hash(schedule)
    count = len(schedule.each) if isinstance(schedule, StepSchedule) else 5
    assert again.steps(count) == schedule.steps(count)


def test_every_kind_has_a_unique_name():
    kinds = {type(schedule): schedule.kind for schedule in SCHEDULES}
    # SkipRule cannot be saved.
    ours = {kind for kind in Schedule.__subclasses__() if kind.__module__.startswith("DeepCache.")}
    assert set(kinds) == {kind for kind in ours if kind.__name__ != "SkipRule"}
    assert len(set(kinds.values())) == len(kinds)


def test_steps_are_saved_as_strings():
    assert StepSchedule(EACH).to_dict() == {
        "kind": "steps",
        "full": "F..F.",
        "branch": "02b00",
        "forecast": "01200",
        "guidance_reuse": "..xx.",
    }


def test_skipped_steps_are_saved_with_their_sign():
    assert StepSchedule(MIXED).to_dict() == {
        "kind": "steps",
        "full": "F-.-F-",
        "branch": "001000",
        "forecast": "043300",
        "guidance_reuse": "......",
    }


def test_skipped_steps_have_no_branch():
    assert StepSchedule(MIXED).branches == (1,)
    assert StepSchedule((Step(True), Step(False, 5, skipped=True))).branches == ()


def test_stretched_schedule_keeps_skipped_steps():
    assert StepSchedule(MIXED).pattern(6) == "F-.-F-"
    assert StepSchedule(MIXED).stretched(12).pattern(12) == "F---..--F---"
    assert StepSchedule(MIXED).stretched(3).pattern(3) == "F.F"


@pytest.mark.parametrize(
    "values",
    [
        {"full": True, "skipped": True},
        {"full": False, "skipped": True, "guidance_reuse": True},
        {"full": False, "forecast": "response"},
        {"full": True, "forecast": "response"},
    ],
)
def test_contradictory_steps_are_refused(values):
    with pytest.raises(ValueError, match="skipped step"):
        Step(**values)


@pytest.mark.parametrize(
    ("steps", "pattern"),
    [(1, "F"), (2, "FF"), (3, "FFF"), (4, "FF.F"), (20, "FF" + "." * 17 + "F"), (50, "F" * 5 + "." * 44 + "F")],
)
def test_adaptive_schedule_has_full_first_tenth_and_last_step(steps, pattern):
    schedule = AdaptiveSchedule(0.1, interval=5)
    assert schedule.pattern(steps) == pattern
    assert AdaptiveSchedule(0.1, interval=1).pattern(steps) == "F" * steps
    assert (schedule.branches, AdaptiveSchedule(0.1, interval=1).branches) == ((0,), ())


def test_adaptive_schedule_requires_the_number_of_steps():
    with pytest.raises(ValueError, match="depends on the number of steps, which is unknown"):
        AdaptiveSchedule(0.1, 5).step(0, None)


def test_absent_keys_have_their_defaults():
    assert schedule_from_dict({"kind": "uniform", "interval": 3}) == UniformSchedule(3)
    assert schedule_from_dict({"kind": "non-uniform", "interval": 3}) == NonUniformSchedule(3)
    assert schedule_from_dict({"kind": "explicit", "at": [0, 2]}) == ExplicitSchedule((0, 2))


@pytest.mark.parametrize(
    ("kind", "values", "error", "message"),
    [
        (UniformSchedule, {"interval": 0}, ValueError, "interval must be 1 or more, got 0"),
        (UniformSchedule, {"interval": True}, TypeError, "interval must be an int of 1 or more, got True"),
        (UniformSchedule, {"interval": 2.5}, TypeError, r"interval must be an int of 1 or more, got 2\.5"),
        (UniformSchedule, {"interval": 2, "branch": -1}, ValueError, "branch must be 0 or more, got -1"),
        (NonUniformSchedule, {"interval": 0}, ValueError, "interval must be 1 or more, got 0"),
        (NonUniformSchedule, {"interval": 3, "branch": "0"}, TypeError, "branch must be an int of 0 or more, got '0'"),
        (NonUniformSchedule, {"interval": 3, "center": -1}, ValueError, "center must be 0 or more, got -1"),
        (
            NonUniformSchedule,
            {"interval": 3, "center": 1.5},
            TypeError,
            r"center must be an int of 0 or more, got 1\.5",
        ),
        (NonUniformSchedule, {"interval": 3, "power": 1}, ValueError, "power must be above 1 and at most 10, got 1"),
        (
            NonUniformSchedule,
            {"interval": 3, "power": 10.5},
            ValueError,
            r"power must be above 1 and at most 10, got 10\.5",
        ),
        (
            NonUniformSchedule,
            {"interval": 3, "power": math.nan},
            ValueError,
            "power must be above 1 and at most 10, got nan",
        ),
        (
            NonUniformSchedule,
            {"interval": 3, "power": "2"},
            TypeError,
            "power must be a number above 1 and at most 10, got '2'",
        ),
        (ExplicitSchedule, {"at": ()}, ValueError, r"must start with 0 and ascend, got \(\)"),
        (ExplicitSchedule, {"at": (1, 2)}, ValueError, r"must start with 0 and ascend, got \(1, 2\)"),
        (ExplicitSchedule, {"at": (0, 3, 3)}, ValueError, r"must start with 0 and ascend, got \(0, 3, 3\)"),
        (ExplicitSchedule, {"at": (0, 3, 2)}, ValueError, r"must start with 0 and ascend, got \(0, 3, 2\)"),
        (ExplicitSchedule, {"at": (0, -3)}, ValueError, "a full step must be 0 or more, got -3"),
        (ExplicitSchedule, {"at": (0, 2.5)}, TypeError, r"a full step must be an int of 0 or more, got 2\.5"),
        (ExplicitSchedule, {"at": (0,), "branch": -2}, ValueError, "branch must be 0 or more, got -2"),
        (WindowSchedule, {"schedule": 3}, TypeError, "schedule must be a schedule of DeepCache.schedule, got 3"),
        (WindowSchedule, {"schedule": UniformSchedule(2), "start": -1}, ValueError, "start must be 0 or more, got -1"),
        (
            WindowSchedule,
            {"schedule": UniformSchedule(2), "start": 4, "stop": 4},
            ValueError,
            "stop must be 5 or more, got 4",
        ),
        (
            WindowSchedule,
            {"schedule": UniformSchedule(2), "start": 0, "stop": "9"},
            TypeError,
            "stop must be an int of 1 or more, got '9'",
        ),
        (BranchSchedule, {"schedule": "uniform", "after": (0,)}, TypeError, "must be a schedule .*, got 'uniform'"),
        (
            BranchSchedule,
            {"schedule": UniformSchedule(2), "after": ()},
            ValueError,
            "one skip branch or more, got none",
        ),
        (
            BranchSchedule,
            {"schedule": UniformSchedule(2), "after": (0, -1)},
            ValueError,
            "a branch must be 0 or more, got -1",
        ),
        (
            BranchSchedule,
            {"schedule": UniformSchedule(2), "after": (0, None)},
            TypeError,
            "a branch must be an int of 0 or more, got None",
        ),
        (StepSchedule, {"each": ()}, ValueError, "the first step must be full and without guidance reuse"),
        (
            WindowSchedule,
            {"schedule": StepSchedule(EACH)},
            ValueError,
            "a schedule of kind 'steps' cannot be part of another schedule",
        ),
        (
            BranchSchedule,
            {"schedule": AdaptiveSchedule(0.1, 5), "after": (0, 1)},
            ValueError,
            "a schedule of kind 'adaptive' cannot be part of another schedule",
        ),
        (AdaptiveSchedule, {"threshold": 0, "interval": 3}, ValueError, "threshold must be above 0, got 0"),
        (AdaptiveSchedule, {"threshold": math.inf, "interval": 3}, ValueError, "threshold must be above 0, got inf"),
        (AdaptiveSchedule, {"threshold": math.nan, "interval": 3}, ValueError, "threshold must be above 0, got nan"),
        (
            AdaptiveSchedule,
            {"threshold": True, "interval": 3},
            TypeError,
            "threshold must be a number above 0, got True",
        ),
        (AdaptiveSchedule, {"threshold": "1", "interval": 3}, TypeError, "threshold must be a number above 0, got '1'"),
        (AdaptiveSchedule, {"threshold": 0.1, "interval": 0}, ValueError, "interval must be 1 or more, got 0"),
        (StepSchedule, {"each": (Step(False, skipped=True),)}, ValueError, "the first step must be full"),
        (BranchSchedule, {"schedule": UniformSchedule(2), "after": (0, 36)}, ValueError, "must be 35 or less, got 36"),
        (StepSchedule, {"each": (None,)}, TypeError, "a step must be a Step, got None"),
        (StepSchedule, {"each": (Step(True), Step(False, -1))}, ValueError, "a branch must be 0 or more, got -1"),
        (StepSchedule, {"each": (Step(True), Step(False, 36))}, ValueError, "a branch must be 35 or less, got 36"),
        (StepSchedule, {"each": (Step(True, 0, "cubic"),)}, ValueError, "forecast must be one of .*, got 'cubic'"),
        (StepSchedule, {"each": (Step(False),)}, ValueError, "the first step must be full"),
        (StepSchedule, {"each": (Step(True, guidance_reuse=True),)}, ValueError, "without guidance reuse"),
    ],
)
def test_invalid_values_are_named(kind, values, error, message):
    with pytest.raises(error, match=message):
        kind(**values)


LINES = StepSchedule(EACH).to_dict()


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (
            None,
            ValueError,
            "'kind' is one of uniform, non-uniform, explicit, window, branches, adaptive, steps, got None",
        ),
        ([], ValueError, r"'kind' is one of .*, got \[\]"),
        ({}, ValueError, r"'kind' is one of .*, got \{\}"),
        ({"kind": "random"}, ValueError, "'kind' is one of .*, got {'kind': 'random'}"),
        ({"kind": []}, ValueError, r"'kind' is one of .*, got {'kind': \[\]}"),
        ({"kind": "uniform", "interval": 0}, ValueError, "interval must be 1 or more, got 0"),
        (
            {"kind": "uniform", "interval": "3"},
            TypeError,
            "kind 'uniform': interval must be an int of 1 or more, got '3'",
        ),
        ({"kind": "uniform", "interval": 3, "speed": 1}, TypeError, "kind 'uniform': .*'speed'"),
        ({"kind": "explicit"}, TypeError, "kind 'explicit': .*'at'"),
        ({"kind": "window", "schedule": {"kind": "uniform"}}, TypeError, "kind 'uniform': .*'interval'"),
        ({"kind": "window", "schedule": "uniform"}, ValueError, "'kind' is one of .*, got 'uniform'"),
        (
            LINES | {"full": "F..G."},
            ValueError,
            r"'full' of a schedule of steps must consist of the characters F\.-, got 'F..G.'",
        ),
        (LINES | {"branch": "02B00"}, ValueError, "'branch' .* must consist of the characters 0123.*xyz, got '02B00'"),
        (LINES | {"forecast": "01500"}, ValueError, "'forecast' .* must consist of the characters 01234, got '01500'"),
        (LINES | {"forecast": "01400"}, ValueError, "'response' is for skipped steps: use 'limited'"),
        (LINES | {"full": "F.-F."}, ValueError, "a skipped step runs no layer"),
        (
            LINES | {"guidance_reuse": "..yy."},
            ValueError,
            r"'guidance_reuse' .* must consist of the characters x\.",
        ),
        (LINES | {"full": None}, ValueError, "'full' .*, got None"),
        (LINES | {"full": "F."}, ValueError, "differ in length: full 2, branch 5, forecast 5, guidance_reuse 5"),
        (LINES | {"full": "....."}, ValueError, "the first step must be full"),
    ],
)
def test_invalid_saved_schedules_are_refused(values, error, message):
    with pytest.raises(error, match=message):
        schedule_from_dict(values)
