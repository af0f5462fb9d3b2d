"""A plan over another number of steps than its own."""

import itertools
import random

import pytest
import torch

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.plan import Plan
from DeepCache.schedule import Step, StepSchedule, pattern_of
from tests.engine.tiny_pipeline import generate, tiny_pipeline

REUSE = Step(False, 1, "linear", guidance_reuse=True)
FULL_REUSE = Step(True, forecast="linear", guidance_reuse=True)


def of_pattern(text):
    return StepSchedule(tuple(Step(character == "F") for character in text))


def any_schedule(seed, steps):
    chance = random.Random(seed)
    kinds = (Step(True), Step(False), Step(False, 1, "quadratic"), REUSE, FULL_REUSE)
    return StepSchedule((Step(True), *(chance.choice(kinds) for _ in range(steps - 1))))


def config(schedule, **values):
    return DeepCacheConfig(plan=Plan(schedule, {}, {}), **values)


@pytest.mark.parametrize(
    ("pattern", "steps", "stretched"),
    [
        ("F.F.", 8, "F...F..."),
        ("F.F.", 3, "FF."),
        ("F.F.", 4, "F.F."),
        ("F...", 12, "F..........."),
        ("F..F..", 12, "F.....F....."),
        ("F..F..", 3, "FF."),
        ("F..F..", 1, "F"),
        ("FF..", 8, "F.F....."),
        ("FFFF", 7, "FFFFFFF"),
        ("F", 5, "FFFFF"),
        ("F", 1, "F"),
    ],
)
def test_full_steps_keep_their_relative_positions(pattern, steps, stretched):
    assert of_pattern(pattern).stretched(steps).pattern(steps) == stretched


@pytest.mark.parametrize("seed", range(10))
def test_stretching_to_its_own_length_changes_nothing(seed):
    schedule = any_schedule(seed, 9)
    assert schedule.stretched(9) == schedule


def test_a_schedule_stretches_to_any_number_of_steps():
    for seed, steps, count in itertools.product(range(20), (1, 2, 5, 9), range(1, 25)):
        schedule = any_schedule(seed, steps)
        stretched = schedule.stretched(count)
        assert len(stretched.each) == count
        assert stretched.each[0] == Step(True)
        assert set(stretched.each) <= set(schedule.each)
        if count > steps and not all(step.full for step in schedule.each):
            assert stretched.full_steps(count) == schedule.full_steps(steps)
        elif count < steps:
            assert stretched.full_steps(count) <= schedule.full_steps(steps)


def test_over_twice_as_many_steps_full_steps_double_their_positions():
    for seed in range(20):
        schedule = any_schedule(seed, 8)
        if all(step.full for step in schedule.each):
            continue
        found = [number for number, step in enumerate(schedule.stretched(16).each) if step.full]
        assert found == [2 * number for number, step in enumerate(schedule.each) if step.full]


def test_shallow_steps_keep_their_forecast_and_guidance_reuse():
    schedule = StepSchedule((Step(True), Step(False), FULL_REUSE, REUSE))
    assert schedule.stretched(8).to_dict() == {
        "kind": "steps",
        "full": "F...F...",
        "branch": "00000111",
        "forecast": "00001111",
        "guidance_reuse": "....xxxx",
    }


def test_only_a_forced_plan_is_stretched():
    schedule = of_pattern("F..F.")
    forced = config(schedule, force_plan=True)
    assert pattern_of(forced.steps(5)) == "F..F."
    assert forced.steps(10) == schedule.stretched(10).each
    for count in (4, 10):
        with pytest.raises(ValueError, match=f"the schedule is for 5 steps, but this run has {count}"):
            config(schedule).steps(count)


def test_a_schedule_without_a_plan_is_never_stretched():
    with pytest.raises(ValueError, match="the schedule is for 5 steps, but this run has 6"):
        DeepCacheConfig(schedule=of_pattern("F..F."), force_plan=True).steps(6)


def test_settings_of_a_forced_plan_cover_the_stretched_steps():
    forced = config(StepSchedule((Step(True), REUSE, Step(True), Step(False, 3, "quadratic"))), force_plan=True)
    for count in range(1, 12):
        steps = forced.steps(count)
        assert {step.branch for step in steps if not step.full} <= set(forced.branches)
        assert max(step.order for step in steps) <= forced.highest_order


@pytest.mark.parametrize("steps", [3, 5, 7, 12])
def test_a_forced_plan_generates_with_another_number_of_steps(steps):
    pipe = tiny_pipeline()
    schedule = StepSchedule((Step(True), REUSE, REUSE, Step(True), REUSE))
    engine = apply_deepcache(pipe, config(schedule, force_plan=True))
    forced = generate(pipe, steps)
    assert engine.stats.pattern == schedule.stretched(steps).pattern(steps)
    apply_deepcache(pipe, DeepCacheConfig(schedule=schedule.stretched(steps)))
    assert torch.equal(generate(pipe, steps), forced)
