import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler
from diffusers.models.attention_processor import AttnProcessor2_0

from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
from DeepCache.metrics import psnr
from DeepCache.plan import Plan
from DeepCache.schedule import Step, StepSchedule
from DeepCache.tune import Goal, TuningSettings, tune
from DeepCache.tune.evaluation import Evaluations
from DeepCache.tune.segment_errors import SegmentErrors
from tests.tune.small_pipeline import PROMPTS, sampler_of, small_pipeline

STEPS = 6
COST = Goal(cost=0.6)


def settings_for(goal=COST, **values):
    return TuningSettings(
        **{
            "prompts": PROMPTS[:2],
            "held_out": PROMPTS[2:],
            "steps": STEPS,
            "goal": goal,
            "model": "small",
            "guidances": (3.0,),
            "evaluations": 2,
        }
        | values
    )


class Bench:
    """A pipeline and a folder to tune in, with what was worked on."""

    def __init__(self, folder, pipe=None):
        self.pipe = small_pipeline() if pipe is None else pipe
        self.folder = folder
        self.progress = []

    def tune(self, goal=COST, **values):
        self.progress = []
        return tune(self.pipe, settings_for(goal, **values), self.folder, self.progress.append)


class Counts:
    """How often segments were measured to the end, and what was generated to be measured."""

    def __init__(self, monkeypatch):
        self.segments = 0
        self.generated = []
        measure, generate = SegmentErrors.measure, Evaluations._generate

        def counted_measure(measuring, sensitivity):
            errors = measure(measuring, sensitivity)
            self.segments += 1
            return errors

        def counted_generate(evaluations, schedule):
            generated = generate(evaluations, schedule)
            self.generated.append((evaluations._name, schedule))
            return generated

        monkeypatch.setattr(SegmentErrors, "measure", counted_measure)
        monkeypatch.setattr(Evaluations, "_generate", counted_generate)


@pytest.fixture
def counts(monkeypatch):
    return Counts(monkeypatch)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("tuning") / "made" / "here")
    bench.plan = bench.tune()
    bench.first_progress = bench.progress
    return bench


def without_seconds(value):
    if isinstance(value, dict):
        return {name: without_seconds(each) for name, each in value.items() if not name.startswith("seconds")}
    return [without_seconds(each) for each in value] if isinstance(value, list) else value


def test_the_plan_meets_a_cost_and_beats_uniform_schedules_of_that_cost(bench):
    results = bench.plan.results
    measured = results["tuning"]["measured"]
    assert measured["cost"] <= 0.6
    affordable = [each for each in results["frontier"]["uniform"] if each["cost"] <= 0.6]
    assert affordable
    assert all(measured["psnr"] >= each["psnr"] for each in affordable)


def test_predictions_are_close_to_measurements(bench):
    tuning = bench.plan.results["tuning"]
    assert tuning["predicted"]["cost"] == pytest.approx(tuning["measured"]["cost"])
    assert tuning["predicted"]["psnr"] == pytest.approx(tuning["measured"]["psnr"], abs=3)


def test_results_have_both_sets_of_prompts_and_the_alternatives(bench):
    results = bench.plan.results
    assert set(results) == {"tuning", "held_out", "frontier"}
    for name in ("tuning", "held_out"):
        assert set(results[name]["predicted"]) == {"cost", "psnr"}
        assert set(results[name]["measured"]) == {"cost", "psnr", "ssim", "seconds"}
        (scale,) = results[name]["scales"]
        assert (scale["guidance"], scale["measured"]) == (3, results[name]["measured"])
        assert results[name]["seconds_without"] > 0
    tuning, held_out = results["tuning"]["measured"], results["held_out"]["measured"]
    assert held_out["cost"] == pytest.approx(tuning["cost"])
    assert held_out["psnr"] != tuning["psnr"]
    assert held_out["psnr"] == pytest.approx(tuning["psnr"], abs=6)
    assert results["held_out"]["uniform"]["cost"] <= tuning["cost"] + 1e-9
    fewer = results["held_out"]["fewer_steps"]
    assert fewer["cost"] == fewer["steps"] / STEPS == pytest.approx(tuning["cost"], abs=0.1)


def test_the_frontier_has_uniform_schedules_fewer_steps_and_tuned_ones(bench):
    frontier = bench.plan.results["frontier"]
    assert {each["name"].partition(", ")[2] for each in frontier["uniform"]} == {
        *("none", "linear", "linear, guidance reuse", "quadratic", "limited", "limited, guidance reuse"),
        *("skipped, limited", "skipped, response"),
    }
    assert {each["name"].partition(",")[0] for each in frontier["uniform"]} == {"interval 2", "interval 3"}
    assert all(0.3 <= each["cost"] <= 0.6 for each in frontier["uniform"])
    assert [each["steps"] for each in frontier["fewer_steps"]] == [4, 3, 2]
    assert frontier["tuned"][-1] == bench.plan.results["tuning"]["measured"]
    assert len(frontier["tuned"]) > 1


def test_the_plan_records_its_conditions(bench):
    plan = bench.plan
    assert plan.scheduler["class"] == "DDIMScheduler"
    assert plan.model["unet"] == "UNet2DConditionModel"
    tuned = plan.tuned
    assert (tuned["model"], tuned["steps"], tuned["guidances"], tuned["seed"]) == ("small", STEPS, [3.0], 0)
    assert plan.guidance == (3, 3)
    assert tuned["goal"] == {"cost": 0.6, "psnr": None}
    assert (tuned["prompts"], tuned["held_out"]) == (list(PROMPTS[:2]), list(PROMPTS[2:]))
    assert tuned["dtype"] == "float32"
    assert set(tuned["versions"]) == {"DeepCache", "diffusers", "torch"}


def test_the_saved_plan_has_the_measured_cost_and_fidelity(bench, tmp_path):
    bench.plan.to_file(tmp_path / "plan.json")
    plan = Plan.from_file(tmp_path / "plan.json")
    assert plan == bench.plan
    pipe = small_pipeline()
    for name, prompts, seed in (("tuning", PROMPTS[:2], 0), ("held_out", PROMPTS[2:], 2)):
        sampler = sampler_of(pipe, prompts, STEPS, 3.0, seed)
        reference = sampler.sample()
        engine = apply_deepcache(pipe, DeepCacheConfig(plan=plan))
        images = sampler.sample()
        remove_deepcache(pipe)
        measured = plan.results[name]["measured"]
        assert engine.stats.mac_share == measured["cost"]
        assert psnr(images, reference).mean().item() == pytest.approx(measured["psnr"], abs=0.01)


def test_progress_rises_through_all_stages(bench):
    progress = bench.first_progress
    done = [each.done for each in progress]
    assert done == sorted(done)
    assert all(each.done <= each.total for each in progress)
    assert list(dict.fromkeys(each.stage for each in progress)) == [
        "recording without DeepCache",
        "errors of each step",
        "uniform schedules and fewer steps",
        "search",
        "held-out prompts",
    ]
    # Less is left out of a long run, which this is not.
    assert done[-1] > progress[-1].total / 2


def test_known_measurements_are_reused(bench, counts):
    again = bench.tune()
    assert (counts.segments, counts.generated) == (0, [])
    assert again.schedule == bench.plan.schedule
    assert without_seconds(again.to_dict()) == without_seconds(bench.plan.to_dict())


def test_seconds_without_deepcache_are_known_after_a_resume(bench):
    assert bench.tune().results["held_out"]["seconds_without"] > 0


@pytest.mark.parametrize("goal", [Goal(psnr=40), Goal(psnr=60), Goal(cost=0.5)], ids=str)
def test_another_goal_starts_from_known_measurements(goal, bench, counts):
    apply_deepcache(bench.pipe, DeepCacheConfig(2))
    plan = bench.tune(goal)
    assert not bench.pipe.unet._forward_hooks
    measured = plan.results["tuning"]["measured"]
    assert goal.met_by(measured["cost"], measured["psnr"])
    assert counts.segments == 0
    uniform = [each for each in plan.results["frontier"]["uniform"] if goal.met_by(each["cost"], each["psnr"])]
    assert all(goal.cost or each["cost"] >= measured["cost"] for each in uniform)
    assert all(goal.psnr or each["psnr"] <= measured["psnr"] for each in uniform)


def test_a_goal_close_to_identical_images_takes_full_steps(bench):
    plan = bench.tune(Goal(psnr=119))
    assert plan.results["tuning"]["measured"]["psnr"] >= 119


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"goal": Goal(cost=0.01)},
            r"^no schedule of 6 steps meets the goal cost ≤ 0\.010: the cheapest, .* 0\.\d{3}, a speed-up of .*\.$",
        ),
        (
            {"goal": Goal(cost=0.16), "guidances": (1.0, 3.0)},
            "the cheapest, with one full step, costs 0.167, a speed-up of 6.00",
        ),
    ],
)
def test_an_unreachable_cost_is_refused_before_the_unet_runs(values, message, tmp_path):
    bench = Bench(tmp_path / "tuning")
    ran = []
    bench.pipe.unet.conv_in.register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError, match=message):
        bench.tune(**values)
    assert not ran
    assert not bench.progress
    assert not bench.folder.exists()
    sampler_of(bench.pipe, steps=1).sample()
    assert ran


def test_the_lowest_cost_in_the_message_is_reachable(tmp_path):
    bench = Bench(tmp_path / "tuning")
    with pytest.raises(ValueError, match="costs") as caught:
        bench.tune(Goal(cost=0.01))
    least = float(re.search(r"costs (0\.\d+)", str(caught.value))[1]) + 0.0005
    plan = bench.tune(Goal(cost=least), evaluations=1)
    assert plan.schedule.pattern(STEPS) == "F-----"
    assert plan.results["tuning"]["measured"]["cost"] <= least


def test_a_lower_cost_is_refused_if_no_step_can_be_skipped(tmp_path):
    class Kept(AttnProcessor2_0):
        def __init__(self):
            super().__init__()
            self.maps = torch.zeros(1)

    bench = Bench(tmp_path / "tuning")
    bench.pipe.unet.set_attn_processor(Kept())
    with pytest.raises(ValueError, match=r"meets the goal cost ≤ 0\.167: the cheapest, .* a speed-up of"):
        bench.tune(Goal(cost=0.167))
    assert not bench.folder.exists()


def test_images_of_nan_are_never_close_to_the_original(tmp_path):
    pipe = small_pipeline()
    evaluations = Evaluations(sampler_of(pipe), tmp_path / "evaluations.jsonl", "tuning", lambda _: None)
    schedule = StepSchedule((Step(True), *[Step(False)] * 5))
    assert evaluations.schedule(schedule).psnr > 0
    broken = Evaluations(sampler_of(pipe), tmp_path / "broken.jsonl", "tuning", lambda _: None)
    _ = broken.reference
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(torch.nan)
    assert (broken.schedule(schedule).psnr, broken.schedule(schedule).ssim) == (0.0, 0.0)


def test_a_model_that_produces_nan_is_refused(tmp_path):
    bench = Bench(tmp_path / "tuning")
    with torch.no_grad():
        bench.pipe.unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"the model without DeepCache produced NaN .*float32 or bfloat16"):
        bench.tune(Goal(cost=0.7))


def with_scheduler(pipe):
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    return pipe


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("pipe", "values", "names"),
    [
        (small_pipeline, {"steps": 7}, "steps"),
        (small_pipeline, {"prompts": PROMPTS[:1], "seed": 3}, "prompts, seed"),
        (small_pipeline, {"guidances": (2.0,)}, "guidances"),
        (small_pipeline, {"model": "another"}, "model"),
        (small_pipeline, {"branches": (1,)}, "branches"),
        (lambda: small_pipeline(seed=1), {}, "unet"),
        (lambda: with_scheduler(small_pipeline()), {}, "scheduler"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_folder_of_another_tuning_is_refused_with_the_differences(pipe, values, names, bench):
    before = {path.name: path.read_bytes() for path in bench.folder.iterdir()}
    with pytest.raises(
        ValueError, match=rf"here' was measured with different settings \({names}\)\. Give another folder"
    ):
        Bench(bench.folder, pipe()).tune(**values)
    assert {path.name: path.read_bytes() for path in bench.folder.iterdir()} == before


def test_a_tuning_that_is_stopped_at_any_time_resumes(tmp_path, counts):
    values = {"steps": 4, "batch": 1, "evaluations": 2}
    expected = Bench(tmp_path / "at once").tune(**values)
    whole = (tmp_path / "at once" / "evaluations.jsonl").read_text(encoding="utf-8")
    generated, segments = counts.generated[:], counts.segments
    assert segments == 2
    counts.generated.clear()
    bench = Bench(tmp_path / "in pieces")

    def stop_at(stage, event):
        left = event

        def stop(progress):
            nonlocal left
            if progress.stage == stage:
                left -= 1
                if not left:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tune(bench.pipe, settings_for(**values), bench.folder, stop)
        assert not bench.pipe.unet._forward_hooks
        assert "forward" not in bench.pipe.unet.__dict__

    for stage, event in (
        ("recording without DeepCache", 2),
        # In the middle of the first batch, then of the second.
        ("errors of each step", 4),
        ("errors of each step", 12),
        ("uniform schedules and fewer steps", 4),
        ("search", 1),
        ("search", 2),
        ("held-out prompts", 2),
    ):
        stop_at(stage, event)
    plan = bench.tune(**values)
    assert without_seconds(plan.to_dict()) == without_seconds(expected.to_dict())
    assert counts.segments == 2 * segments
    assert counts.generated == generated
    entries = [json.loads(line) for line in (bench.folder / "evaluations.jsonl").read_text().splitlines()]
    assert [entry["key"] for entry in entries] == [json.loads(line)["key"] for line in whole.splitlines()]


def test_half_saved_segments_are_measured_again(bench, counts, tmp_path):
    folder = tmp_path / "tuning"
    shutil.copytree(bench.folder, folder)
    (segments,) = folder.glob("segments-*.safetensors")
    segments.rename(segments.with_suffix(".partial"))
    again = Bench(folder).tune()
    assert counts.segments == 1
    assert counts.generated == []
    assert again.schedule == bench.plan.schedule
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in bench.folder.iterdir())


def test_without_guidance_there_is_no_guidance_reuse(tmp_path):
    plan = Bench(tmp_path).tune(Goal(cost=0.8), guidances=(1.0,), steps=4)
    assert not any(step.guidance_reuse for step in plan.schedule.each)
    assert [each["name"] for each in plan.results["frontier"]["uniform"]] == [
        f"interval 2, {kind}"
        for kind in ("none", "linear", "quadratic", "limited", "skipped, limited", "skipped, response")
    ]
    assert plan.results["tuning"]["measured"]["cost"] <= 0.8


@pytest.fixture(scope="module")
def two_scales(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("two scales"))
    bench.plan = bench.tune(guidances=(6.0, 2.0))
    return bench


def test_at_several_guidance_scales_the_mean_decides_and_each_is_shown(two_scales):
    plan = two_scales.plan
    assert plan.guidance == (2, 6)
    assert plan.tuned["guidances"] == [2, 6]
    for name, prompts, seed in (("tuning", PROMPTS[:2], 0), ("held_out", PROMPTS[2:], 2)):
        result = plan.results[name]
        assert [scale["guidance"] for scale in result["scales"]] == [2, 6]
        measured = [scale["measured"] for scale in result["scales"]]
        for key in ("cost", "psnr", "ssim"):
            assert result["measured"][key] == pytest.approx((measured[0][key] + measured[1][key]) / 2)
        assert result["measured"]["seconds"] == sum(each["seconds"] for each in measured)
        for scale in result["scales"]:
            sampler = sampler_of(two_scales.pipe, prompts, STEPS, scale["guidance"], seed)
            reference = sampler.sample()
            apply_deepcache(two_scales.pipe, DeepCacheConfig(plan=plan))
            images = sampler.sample()
            remove_deepcache(two_scales.pipe)
            assert psnr(images, reference).mean().item() == pytest.approx(scale["measured"]["psnr"], abs=0.01)
    assert measured[0]["psnr"] != measured[1]["psnr"]
    fewer = [scale["fewer_steps"] for scale in plan.results["held_out"]["scales"]]
    both = plan.results["held_out"]["fewer_steps"]
    assert both["steps"] == fewer[0]["steps"] == fewer[1]["steps"]
    assert both["psnr"] == pytest.approx((fewer[0]["psnr"] + fewer[1]["psnr"]) / 2)


def test_known_measurements_at_several_guidance_scales_are_reused(two_scales, counts):
    again = two_scales.tune(guidances=(2.0, 6.0))
    assert (counts.segments, counts.generated) == (0, [])
    assert without_seconds(again.to_dict()) == without_seconds(two_scales.plan.to_dict())
    with pytest.raises(ValueError, match=r"was measured with different settings \(guidances\)"):
        two_scales.tune(guidances=(2.0,))


def test_one_unguided_scale_excludes_guidance_reuse(tmp_path):
    plan = Bench(tmp_path).tune(Goal(cost=0.8), guidances=(1.0, 3.0), steps=4, evaluations=1)
    assert not any(step.guidance_reuse for step in plan.schedule.each)
    assert plan.guidance == (1, 3)
    assert plan.results["tuning"]["measured"]["cost"] <= 0.8


def test_the_default_guidance_scale_is_recorded(tmp_path):
    plan = Bench(tmp_path).tune(Goal(cost=0.8), guidances=(), steps=4, evaluations=0)
    assert plan.tuned["guidances"] == []
    assert plan.guidance == (7.5, 7.5)
    assert [scale["guidance"] for scale in plan.results["held_out"]["scales"]] == [7.5]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_second_order_scheduler_is_tuned_over_all_its_calls(tmp_path):
    pipe = small_pipeline()
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    plan = Bench(tmp_path, pipe).tune(steps=4, branches=(0, 1), guidances=(1.0,), evaluations=1)
    assert len(plan.schedule.each) == 7
    assert set(plan.schedule.branches) <= {0, 1}
    assert plan.results["tuning"]["measured"]["cost"] <= 0.6
    engine = apply_deepcache(pipe, DeepCacheConfig(plan=plan))
    sampler_of(pipe, steps=4, guidance=1.0).sample()
    assert engine.stats.mac_share == plan.results["tuning"]["measured"]["cost"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompts": ()}, "prompts to tune on and others to check on, got 0 and 1"),
        ({"held_out": ()}, "got 2 and 0"),
        ({"held_out": PROMPTS[1:]}, "the prompt 'a green star' is among those to tune on and those to check on"),
        ({"steps": 3}, "steps must be 4 or more, got 3"),
        ({"batch": 0}, "batch must be 1 or more, got 0"),
        ({"evaluations": -1}, "evaluations must be 0 or more, got -1"),
        ({"guidances": (2.0, -1.0)}, "guidance must be >= 0, got -1"),
        ({"guidances": (float("inf"),)}, "guidance must be >= 0, got inf"),
        ({"branches": ()}, "branches must have at least one value, got none"),
        pytest.param(
            {"branches": (0, -1)},
            "branches .*-1",
        ),
    ],
)
def test_invalid_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        settings_for(**values)


def test_a_branch_that_the_unet_lacks_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"must be between 0 and 3 .*got 4"):
        Bench(tmp_path / "tuning").tune(branches=(0, 4))
    assert not list(tmp_path.iterdir())


def test_a_pipeline_of_several_unets_or_of_none_is_refused(tmp_path):
    several = SimpleNamespace(components={"first": small_pipeline().unet, "second": small_pipeline(1).unet})
    with pytest.raises(ValueError, match="a SimpleNamespace has several U-Nets; a plan is for one"):
        tune(several, settings_for(), tmp_path)
    with pytest.raises(TypeError, match="DeepCache needs a denoiser"):
        tune(SimpleNamespace(unet=None, components={}), settings_for(), tmp_path)


def test_the_pipeline_generates_as_before(bench):
    assert torch.equal(sampler_of(bench.pipe).sample(), sampler_of(small_pipeline()).sample())
