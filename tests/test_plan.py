"""Plans are saved, loaded, and refused on other models, schedulers, steps and scales."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache
from DeepCache.engine.fingerprint import fingerprint, scheduler_settings
from DeepCache.plan import PLAN_FORMAT, Plan
from DeepCache.schedule import Step, StepSchedule, UniformSchedule
from tests.engine.tiny_pipeline import generate, tiny_pipeline, tiny_unet

SCHEDULE = StepSchedule(
    (
        Step(True),
        Step(False, 1),
        Step(True, forecast="linear", guidance_reuse=True),
        Step(False, 0, "linear"),
        Step(False, 2, "quadratic", guidance_reuse=True),
        Step(True),
    )
)

# The pipelines run at their default scale, 7.5.
GUIDANCE = (5, 7.5)


def plan_for(pipe, schedule=SCHEDULE):
    return Plan(
        schedule,
        fingerprint(pipe.unet),
        scheduler_settings(pipe.scheduler),
        tuned={"name": "a tiny model", "steps": 6, "prompts": ["a circle", "ein Würfel"]},
        results={"cost": 0.4, "fidelity": None},
        guidance=GUIDANCE,
    )


def old_plan(plan):
    """A plan in format 1."""
    return {name: value for name, value in plan.to_dict().items() if name != "guidance"} | {
        "format": "DeepCache plan 1"
    }


@pytest.fixture
def pipe():
    return tiny_pipeline()


@pytest.fixture
def plan(pipe):
    return plan_for(pipe)


@pytest.fixture
def path(plan, tmp_path):
    plan.to_file(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def other_weights():
    return tiny_pipeline(tiny_unet(seed=1))


def other_structure():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return tiny_pipeline(unet.eval())


def other_scheduler():
    pipe = tiny_pipeline()
    pipe.scheduler = DDPMScheduler()
    return pipe


def other_configuration():
    pipe = tiny_pipeline()
    pipe.scheduler = DDIMScheduler(steps_offset=1, clip_sample=False, beta_schedule="scaled_linear")
    return pipe


OTHERS = [
    (other_weights, "this UNet2DConditionModel has other weights"),
    (other_structure, "this UNet2DConditionModel has other layers"),
    (other_scheduler, "the scheduler is a DDPMScheduler and not a DDIMScheduler"),
    (other_configuration, "beta_schedule of the DDIMScheduler is 'scaled_linear' and not 'linear'"),
]


def test_round_trip_through_a_file(plan, path):
    assert Plan.from_file(path) == plan
    assert Plan.from_file(str(path)) == plan
    assert json.loads(path.read_text(encoding="utf-8"))["format"] == PLAN_FORMAT
    assert "Würfel" in path.read_text(encoding="utf-8")
    assert hash(Plan.from_file(path)) == hash(plan)


def test_tuned_and_results_are_optional():
    plan = Plan(SCHEDULE, {"unet": "A"}, {"class": "B"})
    assert Plan.from_dict(plan.to_dict()) == plan
    bare = {key: value for key, value in plan.to_dict().items() if key not in ("tuned", "results")}
    assert Plan.from_dict(bare) == plan


def test_settings_file_may_be_a_plan(plan, path, tmp_path):
    config = DeepCacheConfig.from_file(path)
    assert config == DeepCacheConfig(plan=plan)
    config.to_file(tmp_path / "config.json")
    assert DeepCacheConfig.from_file(tmp_path / "config.json") == config
    assert DeepCacheConfig.from_json(DeepCacheConfig(plan=plan, force_plan=True).to_json()).force_plan


def test_plan_replaces_other_settings(plan):
    config = DeepCacheConfig(7, 3, "non-uniform", forecast="quadratic", schedule=UniformSchedule(2), plan=plan)
    assert config.steps(6) == SCHEDULE.each
    assert config.effective_schedule == SCHEDULE
    assert config.branches == (0, 1, 2)
    assert config.highest_order == 2
    assert config.any_guidance_reuse


def test_a_plan_is_applied(plan, path, pipe):
    images = []
    for given in (plan, path, str(path)):
        with DeepCacheSDHelper(pipe) as helper:
            helper.set_params(plan=given)
            images.append(generate(pipe))
        stats = helper.stats
        assert (stats.pattern, stats.halved_steps) == ("F1F02F", 2)
    engine = apply_deepcache(pipe, DeepCacheConfig.from_file(path))
    images.append(generate(pipe))
    assert engine.stats.pattern == "F1F02F"
    apply_deepcache(pipe, DeepCacheConfig(schedule=SCHEDULE))
    images.append(generate(pipe))
    assert all(torch.equal(image, images[0]) for image in images[1:])


@pytest.mark.parametrize(("make", "reason"), OTHERS)
def test_plan_for_another_model_or_scheduler_is_refused(make, reason, plan, path):
    pipe = make()
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(3)
    helper.enable()
    expected = generate(pipe)
    message = f"^the plan was tuned for something else: {reason}; tune one for this, or force it "
    for given in (plan, path):
        with pytest.raises(ValueError, match=message):
            helper.set_params(plan=given)
    assert torch.equal(generate(pipe), expected)
    helper.disable()
    with pytest.raises(ValueError, match=message):
        apply_deepcache(pipe, DeepCacheConfig(plan=plan))
    assert not pipe.unet._forward_hooks


@pytest.mark.parametrize(("make", "reason"), OTHERS)
def test_forced_plan_runs_on_another_model_or_scheduler(make, reason, plan, path):
    pipe = make()
    with DeepCacheSDHelper(pipe) as helper:
        helper.set_params(plan=path, force_plan=True)
        assert torch.isfinite(generate(pipe)).all()
        assert helper.stats.pattern == "F1F02F"


def test_plan_for_another_model_is_refused_at_enable(plan):
    pipe = other_weights()
    helper = DeepCacheSDHelper()
    helper.set_params(plan=plan)
    with pytest.raises(ValueError, match="other weights"):
        helper.enable(pipe)
    assert not pipe.unet._forward_hooks


def test_scheduler_assigned_later_is_refused_at_the_first_step(plan, pipe):
    apply_deepcache(pipe, DeepCacheConfig(plan=plan))
    expected = generate(pipe)
    ran = []
    pipe.unet.conv_in.register_forward_pre_hook(lambda *_: ran.append(1))
    scheduler, pipe.scheduler = pipe.scheduler, DDPMScheduler()
    with pytest.raises(ValueError, match="the scheduler is a DDPMScheduler and not a DDIMScheduler"):
        generate(pipe)
    assert not ran
    pipe.scheduler = scheduler
    assert torch.equal(generate(pipe), expected)


def test_unet_assigned_later_is_refused(plan, pipe):
    apply_deepcache(pipe, DeepCacheConfig(plan=plan))
    with pytest.raises(ValueError, match="other weights"):
        pipe.unet = tiny_unet(seed=1)


@pytest.mark.parametrize("scale", [4.5, 5, 6, 7.5, 8.25])
def test_guidance_scale_within_ten_percent_of_the_range_is_accepted(scale, plan, pipe):
    engine = apply_deepcache(pipe, DeepCacheConfig(plan=plan))
    generate(pipe, guidance_scale=scale)
    assert engine.stats.pattern == "F1F02F"


@pytest.mark.parametrize(
    ("guidance", "scale", "reason"),
    [
        ((5, 7.5), 4.4, "the guidance scale is 4.4 and not from 5 to 7.5"),
        ((5, 7.5), 8.3, "the guidance scale is 8.3 and not from 5 to 7.5"),
        ((2, 2), 7.5, "the guidance scale is 7.5 and not 2"),
        # Guidance of 1 or less is disabled.
        ((2, 2), 0.5, "the guidance scale is 1 and not 2"),
    ],
)
def test_other_guidance_scale_is_refused_before_the_unet_runs(guidance, scale, reason, plan, pipe):
    apply_deepcache(pipe, DeepCacheConfig(plan=replace(plan, guidance=guidance)))
    ran = []
    pipe.unet.conv_in.register_forward_pre_hook(lambda *_: ran.append(1))
    message = f"^the plan was tuned for something else: {reason}; tune one for this, or force it .*--force-plan"
    with pytest.raises(ValueError, match=message):
        generate(pipe, guidance_scale=scale)
    assert not ran


def test_forced_plan_runs_at_another_guidance_scale(plan, pipe):
    engine = apply_deepcache(pipe, DeepCacheConfig(plan=plan, force_plan=True))
    generate(pipe, guidance_scale=15.0)
    assert engine.stats.pattern == "F1F02F"


def test_plan_of_format_1_has_no_guidance(plan, tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old_plan(plan)), encoding="utf-8")
    expected = replace(plan, guidance=None)
    assert Plan.from_file(path) == DeepCacheConfig.from_file(path).plan == expected
    assert Plan.from_dict(expected.to_dict()) == expected
    with pytest.raises(ValueError, match="the plan has the unknown key 'guidance'"):
        Plan.from_dict(old_plan(plan) | {"guidance": [1, 2]})


def test_plan_without_guidance_warns_once(plan, pipe):
    config = DeepCacheConfig(plan=Plan.from_dict(old_plan(plan)))
    message = r"does not record the guidance scales .* at guidance 7\.5 .* deepcache tune --guidance 7\.5"
    for _ in range(2):
        engine = apply_deepcache(pipe, config)
        with pytest.warns(UserWarning, match=message) as caught:
            generate(pipe)
        assert len(caught) == 1
        generate(pipe)
        assert engine.stats.pattern == "F1F02F"


def test_forced_plan_without_guidance_does_not_warn(plan, pipe):
    apply_deepcache(pipe, DeepCacheConfig(plan=Plan.from_dict(old_plan(plan)), force_plan=True))
    generate(pipe)


@pytest.mark.parametrize(
    ("guidance", "error", "message"),
    [
        (7.5, TypeError, "guidance of a plan must be the lowest and the highest scale, got 7.5"),
        ([7.5], TypeError, r"got \[7.5\]"),
        ([2, "3"], TypeError, r"got \[2, '3'\]"),
        ([True, 2], TypeError, r"got \[True, 2\]"),
        ([3, 2], ValueError, "guidance of a plan must be a range of scales >= 0, got 3 to 2"),
        ([-1, 2], ValueError, "got -1 to 2"),
        ([1, float("inf")], ValueError, "got 1 to inf"),
        ([float("nan"), 2], ValueError, "got nan to 2"),
    ],
)
def test_invalid_guidance_is_refused(guidance, error, message, plan):
    with pytest.raises(error, match=message):
        Plan.from_dict(plan.to_dict() | {"guidance": guidance})


@pytest.mark.parametrize("steps", [5, 7])
def test_other_number_of_steps_is_refused_at_the_first_step(steps, plan, pipe):
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(plan=plan)
    helper.enable()
    ran = []
    pipe.unet.conv_in.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError, match=f"the schedule is for 6 steps, but this run has {steps}"):
        generate(pipe, steps=steps)
    assert not ran
    generate(pipe)
    assert helper.stats.pattern == "F1F02F"


@pytest.mark.parametrize(("steps", "pattern"), [(5, "FF02F"), (6, "F1F02F"), (12, "F111F00022F2")])
def test_forced_plan_is_stretched_to_another_number_of_steps(steps, pattern, plan, pipe):
    with DeepCacheSDHelper(pipe) as helper:
        helper.set_params(plan=plan, force_plan=True)
        assert torch.isfinite(generate(pipe, steps=steps)).all()
        assert helper.stats.pattern == pattern


def test_forced_plan_with_a_branch_too_deep_is_refused(pipe):
    plan = plan_for(pipe, StepSchedule((Step(True), Step(False, 6))))
    with pytest.raises(ValueError, match=r"must be between 0 and 5 .*got 6"):
        DeepCacheSDHelper(pipe).set_params(plan=plan, force_plan=True)


def changed(**values):
    plan = Plan(SCHEDULE, {"unet": "A"}, {"class": "B"}).to_dict()
    return {key: value for key, value in (plan | values).items() if value is not None}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", rf"a plan must be a JSON object with the 'format' '{PLAN_FORMAT}', got \[\]"),
        ("null", "a plan must be a JSON object .*, got None"),
        (changed(format=None), "a plan must be a JSON object .*, got None"),
        (changed(format="DeepCache plan 9"), "a plan must be a JSON object .*, got 'DeepCache plan 9'"),
        (changed(schedule=None), "the plan lacks the object 'schedule'; its keys are format, schedule, model"),
        (changed(model=None), "the plan lacks the object 'model'"),
        (changed(scheduler="DDIM"), "the plan lacks the object 'scheduler'"),
        (changed(tuned=[1]), "the plan lacks the object 'tuned'"),
        (changed(prompts=[]), "the plan has the unknown key 'prompts'"),
        (
            changed(schedule={"kind": "uniform", "interval": 3}),
            "the schedule of a plan must be of kind 'steps', got 'uni",
        ),
        (changed(schedule={"kind": "spiral"}), "'kind' is one of"),
        (changed(schedule=SCHEDULE.to_dict() | {"full": "F"}), "differ in length"),
        (changed(schedule=SCHEDULE.to_dict() | {"branch": "-1-1-1"}), "must consist of the characters"),
        (changed(schedule=SCHEDULE.to_dict() | {"speed": "....."}), "'speed'"),
    ],
)
def test_file_without_a_plan_is_named_with_the_reason(content, reason, tmp_path, pipe):
    path = tmp_path / "broken.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    message = rf"broken\.json' does not contain a plan: .*{reason}"
    with pytest.raises(ValueError, match=message):
        Plan.from_file(path)
    with pytest.raises(ValueError, match=message):
        DeepCacheSDHelper(pipe).set_params(plan=path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        DeepCacheSDHelper().set_params(plan=tmp_path / "none.json")
