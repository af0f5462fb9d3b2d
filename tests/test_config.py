import dataclasses
import json

import pytest

from DeepCache import DeepCacheConfig
from DeepCache.plan import Plan
from DeepCache.schedule import (
    BranchSchedule,
    ExplicitSchedule,
    NonUniformSchedule,
    Step,
    StepSchedule,
    UniformSchedule,
    WindowSchedule,
    pattern_of,
)

PLAN = Plan(
    StepSchedule((Step(True), Step(False, 2, "quadratic"), Step(True, 0, "linear", guidance_reuse=True))),
    model={"unet": "UNet2DConditionModel", "structure": "0123", "weights": [0.5, -1e-7]},
    scheduler={"class": "DDIMScheduler", "config": {"steps_offset": 1, "prediction_type": "epsilon"}},
    tuned={"steps": 3},
)


@pytest.mark.parametrize(
    "config",
    [
        DeepCacheConfig(cache_interval=5, cache_branch_id=2),
        DeepCacheConfig(4, 1, "non-uniform", "quadratic", guidance_reuse=True),
        DeepCacheConfig(schedule=ExplicitSchedule((0, 2, 7), branch=3), forecast="linear"),
        DeepCacheConfig(schedule=WindowSchedule(BranchSchedule(NonUniformSchedule(4, 9), (0, 2)), start=3)),
        DeepCacheConfig(plan=PLAN, force_plan=True),
        DeepCacheConfig(schedule=UniformSchedule(2), plan=PLAN),
    ],
    ids=["plain", "each field", "schedule", "schedule in a schedule", "plan", "schedule and plan"],
)
def test_json_round_trip(config, tmp_path):
    assert DeepCacheConfig.from_json(config.to_json()) == config
    config.to_file(tmp_path / "config.json")
    assert DeepCacheConfig.from_file(tmp_path / "config.json") == config
    assert hash(DeepCacheConfig.from_json(config.to_json())) == hash(config)
    assert list(json.loads(config.to_json())) == [field.name for field in dataclasses.fields(config)]


def test_a_plan_is_settings_too():
    assert DeepCacheConfig.from_json(json.dumps(PLAN.to_dict())) == DeepCacheConfig(plan=PLAN)


def test_absent_keys_take_their_defaults():
    assert DeepCacheConfig.from_json('{"cache_interval": 7}') == DeepCacheConfig(cache_interval=7)


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DeepCacheConfig().cache_interval = 2  # type: ignore[misc]


def test_an_unknown_key_is_refused_by_name():
    with pytest.raises(ValueError, match=r"unknown key 'interval'.*cache_interval, cache_branch_id, skip_mode"):
        DeepCacheConfig.from_json('{"interval": 3}')


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_what_is_no_json_object_is_refused(text):
    with pytest.raises(ValueError, match="JSON"):
        DeepCacheConfig.from_json(text)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"cache_interval": 0}, ValueError, "cache_interval must be 1 or more, got 0"),
        ({"cache_interval": -3}, ValueError, "cache_interval must be 1 or more, got -3"),
        ({"cache_interval": 2.0}, TypeError, "cache_interval must be an int, got 2.0"),
        ({"cache_interval": True}, TypeError, "cache_interval must be an int, got True"),
        ({"cache_branch_id": -1}, ValueError, "cache_branch_id must be 0 or more, got -1"),
        ({"cache_branch_id": "0"}, TypeError, "cache_branch_id must be an int, got '0'"),
        ({"skip_mode": "random"}, ValueError, "skip_mode must be one of 'uniform', 'non-uniform', got 'random'"),
        ({"skip_mode": None}, TypeError, "skip_mode must be a str, got None"),
        ({"forecast": "cubic"}, ValueError, "forecast must be one of 'none', 'linear', 'quadratic', got 'cubic'"),
        ({"forecast": 1}, TypeError, "forecast must be a str, got 1"),
        ({"forecast": None}, TypeError, "forecast must be a str, got None"),
        ({"guidance_reuse": 1}, TypeError, "guidance_reuse must be a bool, got 1"),
        ({"guidance_reuse": None}, TypeError, "guidance_reuse must be a bool, got None"),
        ({"force_plan": "yes"}, TypeError, "force_plan must be a bool, got 'yes'"),
    ],
)
def test_bad_values_are_named_with_what_is_allowed(values, error, message):
    with pytest.raises(error, match=message):
        DeepCacheConfig(**values)
    with pytest.raises(error, match=message):
        DeepCacheConfig.from_json(json.dumps(values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": "uniform"}, "schedule must be a Schedule, got 'uniform'"),
        ({"schedule": (0, 3)}, r"schedule must be a Schedule, got \(0, 3\)"),
        ({"plan": "plan.json"}, "plan must be a Plan, got 'plan.json'"),
        ({"plan": {}}, "plan must be a Plan, got {}"),
    ],
)
def test_what_is_no_schedule_or_plan_is_refused(values, message):
    with pytest.raises(TypeError, match=message):
        DeepCacheConfig(**values)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"schedule": 3}, ValueError, "a schedule is an object whose 'kind' is one of .*, got 3"),
        ({"schedule": {"kind": "random"}}, ValueError, "a schedule is an object whose 'kind' is one of"),
        ({"schedule": {"kind": "uniform", "interval": 0}}, ValueError, "interval must be 1 or more, got 0"),
        ({"schedule": {"kind": "explicit", "at": [1]}}, ValueError, r"must begin with 0 and rise, got \(1,\)"),
        ({"plan": 3}, ValueError, "a plan is a JSON object .*, got 3"),
        ({"plan": {"format": "another"}}, ValueError, "a plan is a JSON object .*, got 'another'"),
        (PLAN.to_dict() | {"model": None}, ValueError, "the plan lacks the object 'model'"),
    ],
)
def test_a_schedule_or_plan_that_cannot_be_read_is_refused(values, error, message):
    with pytest.raises(error, match=message):
        DeepCacheConfig.from_json(json.dumps(values))


def test_the_skip_mode_says_how_the_full_steps_are_spread():
    assert DeepCacheConfig(5, 2).effective_schedule == UniformSchedule(5, branch=2)
    config = DeepCacheConfig(5, 2, "non-uniform")
    assert config.effective_schedule == NonUniformSchedule(5, branch=2)
    assert pattern_of(config.steps(50)) == "F....F...F...F...F...F....F....F.....F.....F......"


def test_a_schedule_takes_the_place_of_interval_branch_and_skip_mode():
    schedule = ExplicitSchedule((0, 2), branch=1)
    config = DeepCacheConfig(7, 3, "non-uniform", schedule=schedule)
    assert config.effective_schedule == schedule
    assert config.branches == (1,)
    assert pattern_of(config.steps(5)) == "F.F.."


def test_every_shallow_step_has_the_forecast_and_guidance_reuse_of_the_settings():
    config = DeepCacheConfig(3, 1, forecast="linear", guidance_reuse=True)
    shallow = Step(False, 1, "linear", guidance_reuse=True)
    assert config.steps(4) == (Step(True, 1), shallow, shallow, Step(True, 1))
    assert config.step(1, None) == shallow
    assert (config.highest_order, config.any_guidance_reuse) == (1, True)


def test_a_schedule_of_single_steps_says_itself_what_they_forecast():
    each = (Step(True), Step(False), Step(False, 0, "linear"))
    config = DeepCacheConfig(schedule=StepSchedule(each), forecast="quadratic", guidance_reuse=True)
    assert config.steps(3) == each
    assert (config.highest_order, config.any_guidance_reuse) == (1, False)


def test_where_no_step_is_shallow_nothing_is_cut_or_halved():
    config = DeepCacheConfig(1, 2, guidance_reuse=True)
    assert config.branches == ()
    assert not config.any_guidance_reuse
