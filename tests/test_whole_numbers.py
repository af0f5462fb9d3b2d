"""Settings accept numbers of NumPy and torch and whole floats; a run may have zero steps."""

import json
import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache, remove_deepcache
from DeepCache.engine.cost import Costs
from DeepCache.models import load_pipeline
from DeepCache.plan import Plan
from DeepCache.schedule import (
    AdaptiveSchedule,
    BranchSchedule,
    ExplicitSchedule,
    NonUniformSchedule,
    Step,
    StepSchedule,
    UniformSchedule,
    WindowSchedule,
    mean_cost,
    schedule_from_dict,
)
from tests.engine.tiny_pipeline import generate, tiny_pipeline
from tests.releases import CLI

KINDS = {
    "float": float,
    "int64": np.int64,
    "uint8": np.uint8,
    "float32": np.float32,
    "array": np.array,
    "tensor": torch.tensor,
    "tensor of a float": lambda number: torch.tensor(float(number)),
}
SCHEDULES = {
    "uniform": lambda n: UniformSchedule(n(3), branch=n(2)),
    "non-uniform": lambda n: NonUniformSchedule(n(3), center=n(4), branch=n(1)),
    "explicit": lambda n: ExplicitSchedule((n(0), n(2), n(5)), branch=n(1)),
    "window": lambda n: WindowSchedule(UniformSchedule(n(3)), start=n(1), stop=n(6)),
    "branches": lambda n: BranchSchedule(UniformSchedule(n(4)), after=(n(0), n(2), n(1))),
    "adaptive": lambda n: AdaptiveSchedule(0.25, n(4), branch=n(1)),
    "steps": lambda n: StepSchedule((Step(True, n(0)), Step(False, n(2)))),
}
CONFIGS = {
    "interval and branch": lambda n: DeepCacheConfig(cache_interval=n(3), cache_branch_id=n(1)),
    "adaptive": lambda n: DeepCacheConfig(cache_interval=n(9), skip_mode="adaptive"),
    "schedule": lambda n: DeepCacheConfig(schedule=UniformSchedule(n(3), branch=n(2))),
    "plan": lambda n: DeepCacheConfig(plan=Plan(StepSchedule((Step(True), Step(False, n(2)))), {}, {})),
}


def _id(value):
    """NumPy 1 shows its numbers as Python's."""
    return f"{type(value).__name__} {value!r}"


NOT_WHOLE = [True, np.True_, torch.tensor(True), 3.5, np.float32(3.5), torch.tensor(3.5), math.nan, math.inf]
NOT_WHOLE += ["3", None, [3], (3,), np.array([3]), torch.tensor([3, 4]), 3j]


@pytest.mark.parametrize("number", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_other_types_of_integers_make_the_same_schedule(make, number):
    expected, found = make(int), make(number)
    assert found == expected
    assert hash(found) == hash(expected)
    assert repr(found) == repr(expected)
    assert json.dumps(found.to_dict()) == json.dumps(expected.to_dict())
    assert schedule_from_dict(json.loads(json.dumps(found.to_dict()))) == expected
    count = len(expected.each) if isinstance(expected, StepSchedule) else 9
    assert found.steps(number(count)) == expected.steps(count)


@pytest.mark.parametrize("number", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("make", CONFIGS.values(), ids=CONFIGS)
def test_other_types_of_integers_make_the_same_settings(make, number):
    expected, found = make(int), make(number)
    assert found == expected
    assert hash(found) == hash(expected)
    assert repr(found) == repr(expected)
    assert found.to_json() == expected.to_json()
    assert DeepCacheConfig.from_json(found.to_json()) == expected


@pytest.mark.parametrize("at", [np.array([0, 2, 5]), torch.tensor([0, 2, 5]), [0.0, 2.0, 5.0], range(0, 6, 2)])
def test_other_types_of_step_lists(at):
    schedule = ExplicitSchedule(at)
    assert schedule == ExplicitSchedule(tuple(int(number) for number in at))
    assert {type(number) for number in schedule.at} == {int}


def test_numpy_mask_sets_the_full_steps():
    mask = np.array([True, False, True])
    schedule = StepSchedule([Step(full) for full in mask])
    assert repr(schedule) == repr(StepSchedule((Step(True), Step(False), Step(True))))


@pytest.mark.parametrize("value", NOT_WHOLE, ids=_id)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda value: DeepCacheConfig(cache_interval=value), "cache_interval must be an int of 1 or more, got "),
        (lambda value: DeepCacheConfig(cache_branch_id=value), "cache_branch_id must be an int of 0 or more, got "),
        (lambda value: ExplicitSchedule((0, value)), "a full step must be an int of 0 or more, got "),
        (lambda value: BranchSchedule(UniformSchedule(3), (value,)), "a branch must be an int of 0 or more, got "),
        (lambda value: WindowSchedule(UniformSchedule(3), value), "start must be an int of 0 or more, got "),
        (lambda value: Step(False, value), "a branch must be an int of 0 or more, got "),
        (lambda value: UniformSchedule(3).steps(value), "the number of steps must be an int of 0 or more, got "),
        (lambda value: DeepCacheConfig().steps(value), "the number of steps must be an int of 0 or more, got "),
    ],
    ids=["interval", "branch", "explicit", "branches", "window", "step", "steps", "steps of settings"],
)
def test_values_that_are_not_integers_are_refused(make, message, value):
    with pytest.raises(TypeError) as caught:
        make(value)
    assert str(caught.value) == message + repr(value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExplicitSchedule(5), "at must be a sequence of steps, got 5"),
        (lambda: ExplicitSchedule("05"), "at must be a sequence of steps, got '05'"),
        (lambda: BranchSchedule(UniformSchedule(3), 1), "after must be a sequence of skip branches, got 1"),
        (lambda: BranchSchedule(UniformSchedule(3), np.array(1)), "after must be a sequence of skip branches, got arr"),
        (lambda: StepSchedule(Step(True)), "each must be a sequence of steps, got Step"),
    ],
)
def test_numbers_instead_of_lists_are_refused(make, message):
    with pytest.raises(TypeError, match=message.replace("(", r"\(")):
        make()


@pytest.mark.parametrize("number", [np.float64(0.25), np.float32(0.25), np.array(0.25), torch.tensor(0.25)], ids=_id)
def test_other_types_of_thresholds_and_powers(number):
    config = DeepCacheConfig(skip_mode="adaptive", threshold=number)
    assert config == DeepCacheConfig(skip_mode="adaptive", threshold=0.25)
    assert (type(config.threshold), hash(config)) == (
        float,
        hash(DeepCacheConfig(skip_mode="adaptive", threshold=0.25)),
    )
    assert DeepCacheConfig.from_json(config.to_json()) == config
    assert repr(AdaptiveSchedule(number, 3)) == "AdaptiveSchedule(threshold=0.25, interval=3, branch=0)"
    assert repr(NonUniformSchedule(3, power=number + 1)).endswith("power=1.25, branch=0)")


@pytest.mark.parametrize("value", [torch.tensor(True), np.True_, torch.tensor([0.1]), np.array("0.1"), 1j], ids=_id)
def test_threshold_that_is_not_a_number_is_refused(value):
    with pytest.raises(TypeError) as caught:
        DeepCacheConfig(threshold=value)
    assert str(caught.value) == f"threshold must be a number above 0, got {value!r}"


def test_helper_accepts_other_types_of_integers():
    pipe = tiny_pipeline()
    helper = DeepCacheSDHelper(pipe)
    images = []
    for interval, branch in ((3, 1), (np.int64(3), np.int32(1)), (3.0, 1.0), (torch.tensor(3), torch.tensor(1))):
        helper.set_params(cache_interval=interval, cache_branch_id=branch)
        with helper:
            images.append(generate(pipe))
        assert helper.stats.pattern == "F..F.."
        assert repr(helper.params["cache_interval"]) == "3"
    assert all(torch.equal(image, images[0]) for image in images)


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_run_of_zero_steps(make):
    schedule, costs = make(int), Costs(100, dict.fromkeys(range(3), 10), dict.fromkeys(range(3), 8))
    assert schedule.steps(0) == ()
    assert schedule.pattern(0) == ""
    assert schedule.full_steps(0) == 0
    with pytest.raises(ValueError, match="the number of steps must be 1 or more, got 0"):
        schedule.cost(0, costs)
    assert DeepCacheConfig(schedule=schedule).steps(0) == ()
    with pytest.raises(ValueError, match="the number of steps must be 0 or more, got -1"):
        schedule.steps(-1)


def test_plan_stretched_to_zero_steps():
    schedule = SCHEDULES["steps"](int)
    assert DeepCacheConfig(plan=Plan(schedule, {}, {}), force_plan=True).steps(0) == ()
    with pytest.raises(ValueError, match="the number of steps must be 1 or more, got 0"):
        schedule.stretched(0)


@pytest.mark.parametrize("schedule", [NonUniformSchedule(3), AdaptiveSchedule(0.1, 3)], ids=str)
def test_step_of_a_run_of_zero_steps_is_refused(schedule):
    with pytest.raises(ValueError, match="the number of steps must be 1 or more, got 0"):
        schedule.step(0, 0)


def test_mean_cost_of_zero_steps_is_refused():
    with pytest.raises(ValueError, match="the number of steps must be 1 or more, got 0"):
        mean_cost([], Costs(100, {}, {}))


@CLI
@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler])
def test_pipeline_with_zero_steps_behaves_as_without_caching(scheduler):
    pipe = load_pipeline("shapes")
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    found = []
    for config in (
        None,
        DeepCacheConfig(3),
        DeepCacheConfig(skip_mode="non-uniform"),
        DeepCacheConfig(2, between="skipped"),
    ):
        if config is not None:
            apply_deepcache(pipe, config)
        try:
            pipe("a red circle", num_inference_steps=0, generator=torch.Generator().manual_seed(0))
        except Exception as error:
            found.append((type(error), str(error)))
        else:
            found.append("an image")
    remove_deepcache(pipe)
    assert found == found[:1] * 4
