import dataclasses
import json

import pytest

from DeepCache import DeepCacheConfig
from DeepCache.plan import Plan
from DeepCache.schedule import (
    FORECASTS,
    AdaptiveSchedule,
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
        DeepCacheConfig(9, skip_mode="adaptive", forecast="response", between="alternating", threshold=0.0625),
        DeepCacheConfig(schedule=AdaptiveSchedule(0.3, 7, branch=1), between="skipped"),
        DeepCacheConfig(schedule=StepSchedule((Step(True), Step(False, forecast="response", skipped=True)))),
    ],
    ids=[
        "plain",
        "each field",
        "schedule",
        "schedule in a schedule",
        "plan",
        "schedule and plan",
        "adaptive and alternating",
        "adaptive schedule",
        "skipped steps",
    ],
)
def test_json_round_trip(config, tmp_path):
    assert DeepCacheConfig.from_json(config.to_json()) == config
    config.to_file(tmp_path / "config.json")
    assert DeepCacheConfig.from_file(tmp_path / "config.json") == config
    assert hash(DeepCacheConfig.from_json(config.to_json())) == hash(config)
    assert list(json.loads(config.to_json())) == [field.name for field in dataclasses.fields(config)]


def test_plan_is_read_as_settings():
    assert DeepCacheConfig.from_json(json.dumps(PLAN.to_dict())) == DeepCacheConfig(plan=PLAN)


def test_absent_keys_have_their_defaults():
    assert DeepCacheConfig.from_json('{"cache_interval": 7}') == DeepCacheConfig(cache_interval=7)


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DeepCacheConfig().cache_interval = 2  # type: ignore[misc]


def test_unknown_key_is_refused_by_name():
    with pytest.raises(ValueError, match=r"unknown key 'interval'.*cache_interval, cache_branch_id, skip_mode"):
        DeepCacheConfig.from_json('{"interval": 3}')


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_text_that_is_not_a_json_object_is_refused(text):
    with pytest.raises(ValueError, match="JSON"):
        DeepCacheConfig.from_json(text)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"cache_interval": 0}, ValueError, "cache_interval must be 1 or more, got 0"),
        ({"cache_interval": -3}, ValueError, "cache_interval must be 1 or more, got -3"),
        ({"cache_interval": 2.5}, TypeError, "cache_interval must be an int of 1 or more, got 2.5"),
        ({"cache_interval": True}, TypeError, "cache_interval must be an int of 1 or more, got True"),
        ({"cache_branch_id": -1}, ValueError, "cache_branch_id must be 0 or more, got -1"),
        ({"cache_branch_id": "0"}, TypeError, "cache_branch_id must be an int of 0 or more, got '0'"),
        (
            {"skip_mode": "random"},
            ValueError,
            "skip_mode must be one of 'uniform', 'non-uniform', 'adaptive', got 'random'",
        ),
        ({"skip_mode": None}, TypeError, "skip_mode must be a str, got None"),
        (
            {"forecast": "cubic"},
            ValueError,
            "forecast must be one of 'none', 'linear', 'quadratic', 'limited', 'response', got",
        ),
        ({"forecast": 1}, TypeError, "forecast must be a str, got 1"),
        ({"forecast": None}, TypeError, "forecast must be a str, got None"),
        ({"guidance_reuse": 1}, TypeError, "guidance_reuse must be a bool, got 1"),
        ({"guidance_reuse": None}, TypeError, "guidance_reuse must be a bool, got None"),
        ({"force_plan": "yes"}, TypeError, "force_plan must be a bool, got 'yes'"),
        ({"between": "none"}, ValueError, "between must be one of 'shallow', 'skipped', 'alternating', got 'none'"),
        ({"between": None}, TypeError, "between must be a str, got None"),
        ({"threshold": 0}, ValueError, "threshold must be above 0, got 0"),
        ({"threshold": -0.5}, ValueError, "threshold must be above 0, got -0.5"),
        ({"threshold": True}, TypeError, "threshold must be a number above 0, got True"),
        ({"threshold": "0.1"}, TypeError, "threshold must be a number above 0, got '0.1'"),
        ({"forecast": "response"}, ValueError, "'response' is for skipped steps. Use between='skipped' or"),
        ({"guidance_reuse": True, "between": "skipped"}, ValueError, "guidance_reuse halves shallow steps"),
    ],
)
def test_invalid_values_are_named_with_allowed_ones(values, error, message):
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
def test_other_types_of_schedule_and_plan_are_refused(values, message):
    with pytest.raises(TypeError, match=message):
        DeepCacheConfig(**values)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"schedule": 3}, ValueError, "a schedule must be an object whose 'kind' is one of .*, got 3"),
        ({"schedule": {"kind": "random"}}, ValueError, "a schedule must be an object whose 'kind' is one of"),
        ({"schedule": {"kind": "uniform", "interval": 0}}, ValueError, "interval must be 1 or more, got 0"),
        ({"schedule": {"kind": "explicit", "at": [1]}}, ValueError, r"must start with 0 and ascend, got \(1,\)"),
        ({"plan": 3}, ValueError, "a plan must be a JSON object .*, got 3"),
        ({"plan": {"format": "another"}}, ValueError, "a plan must be a JSON object .*, got 'another'"),
        (PLAN.to_dict() | {"model": None}, ValueError, "the plan lacks the object 'model'"),
    ],
)
def test_invalid_schedule_or_plan_in_json_is_refused(values, error, message):
    with pytest.raises(error, match=message):
        DeepCacheConfig.from_json(json.dumps(values))


def test_skip_mode_sets_the_schedule():
    assert DeepCacheConfig(5, 2).effective_schedule == UniformSchedule(5, branch=2)
    config = DeepCacheConfig(5, 2, "non-uniform")
    assert config.effective_schedule == NonUniformSchedule(5, branch=2)
    assert pattern_of(config.steps(50)) == "F....F...F...F...F...F....F....F.....F.....F......"


def test_schedule_replaces_interval_branch_and_skip_mode():
    schedule = ExplicitSchedule((0, 2), branch=1)
    config = DeepCacheConfig(7, 3, "non-uniform", schedule=schedule)
    assert config.effective_schedule == schedule
    assert config.branches == (1,)
    assert pattern_of(config.steps(5)) == "F.F.."


def test_shallow_steps_have_forecast_and_guidance_reuse_of_the_settings():
    config = DeepCacheConfig(3, 1, forecast="linear", guidance_reuse=True)
    shallow = Step(False, 1, "linear", guidance_reuse=True)
    assert config.steps(4) == (Step(True, 1), shallow, shallow, Step(True, 1))
    assert config.step(1, None) == shallow
    assert (config.highest_order, config.any_guidance_reuse) == (1, True)


def test_step_schedule_has_its_own_forecasts():
    each = (Step(True), Step(False), Step(False, 0, "linear"))
    config = DeepCacheConfig(schedule=StepSchedule(each), forecast="quadratic", guidance_reuse=True)
    assert config.steps(3) == each
    assert (config.highest_order, config.any_guidance_reuse) == (1, False)


def test_interval_one_has_no_branches_and_no_guidance_reuse():
    config = DeepCacheConfig(1, 2, guidance_reuse=True)
    assert config.branches == ()
    assert not config.any_guidance_reuse


def test_adaptive_mode_uses_threshold_interval_and_branch():
    config = DeepCacheConfig(9, 2, "adaptive", threshold=0.4)
    assert config.effective_schedule == AdaptiveSchedule(0.4, 9, 2)
    assert pattern_of(config.steps(12)) == "FF.........F"


def test_between_sets_the_kind_of_steps():
    patterns = {"shallow": "F....F....F.", "skipped": "F----F----F-", "alternating": "F.-.-F.-.-F."}
    for between, pattern in patterns.items():
        config = DeepCacheConfig(5, 1, between=between)
        assert pattern_of(config.steps(12)) == pattern
        assert pattern_of(config.step(number, None) for number in range(12)) == pattern
        assert config.any_skipped == ("-" in pattern)
        assert config.branches == ((1,) if "." in pattern else ())


def test_alternating_steps_count_from_the_last_full_one():
    config = DeepCacheConfig(schedule=ExplicitSchedule((0, 1, 3, 6)), between="alternating", forecast="none")
    assert pattern_of(config.steps(10)) == "FF.F.-F.-."
    # A full step that was decided upon during the run counts as well.
    assert [config.step(9, 10, since).skipped for since in (1, 2, 3, 4)] == [False, True, False, True]


def test_skipped_and_shallow_steps_have_their_own_forecasts():
    config = DeepCacheConfig(3, 1, forecast="response", between="alternating", guidance_reuse=True)
    _, shallow, skipped, _ = config.steps(4)
    assert shallow == Step(False, 1, "limited", guidance_reuse=True)
    assert skipped == Step(False, forecast="response", skipped=True)
    assert (config.highest_order, config.any_response, config.any_guidance_reuse) == (2, True, True)


@pytest.mark.parametrize("between", ["shallow", "skipped", "alternating"])
@pytest.mark.parametrize("mode", ["uniform", "non-uniform", "adaptive"])
def test_interval_of_one_skips_nothing(mode, between):
    config = DeepCacheConfig(1, skip_mode=mode, between=between)
    assert pattern_of(config.steps(10)) == "F" * 10
    assert (config.branches, config.any_skipped, config.any_response) == ((), False, False)


def test_step_schedule_sets_skipped_steps():
    each = (Step(True), Step(False, 1), Step(False, forecast="response", skipped=True))
    config = DeepCacheConfig(schedule=StepSchedule(each), forecast="linear", between="skipped")
    assert config.steps(3) == each
    assert (config.branches, config.any_skipped, config.any_response, config.highest_order) == ((1,), True, True, 2)
    assert not DeepCacheConfig(schedule=StepSchedule(each[:2]), between="skipped").any_skipped


def test_limited_forecast_is_the_default():
    assert DeepCacheConfig().forecast == "limited"
    assert FORECASTS[:3] == ("none", "linear", "quadratic"), "plans that are saved number them"
