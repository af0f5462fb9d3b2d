"""Skipped steps: no layer of the U-Net runs, and its prediction is re-used or forecast."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from diffusers import HeunDiscreteScheduler, PNDMScheduler, StableDiffusionImg2ImgPipeline

from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
from DeepCache.schedule import AdaptiveSchedule, ExplicitSchedule, Step, StepSchedule, UniformSchedule
from tests.engine.dummy_unet import DummyUNet, Pipeline
from tests.engine.no_transfers import NoTransfers
from tests.engine.slots import kept_slots
from tests.engine.tiny_pipeline import generate, tiny_pipeline, tiny_unet
from tests.releases import COMPILES, COUNTS, OFFLOADS_ALL

pytestmark = [
    # Torch's own, when a U-Net is compiled.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
    # Diffusers' schedulers, with numpy 2.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
]

SKIPPED = DeepCacheConfig(3, forecast="linear", between="skipped")


def observe(unet):
    """The modules of a U-Net that run, including itself."""
    ran = []
    for name, module in unet.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    return ran


def run(pipe, steps=7, noisy=lambda step: 1.0):
    return [pipe.call(noisy(step), step) for step in range(steps)]


# The U-Net returns 23 noisy + timestep.
@pytest.mark.parametrize(
    ("forecast", "expected"),
    [
        ("none", [23, 23, 24, 24, 27, 27, 32, 32]),
        ("linear", [23, 23, 24, 24.5, 27, 28.5, 32, 34.5]),
        ("quadratic", [23, 23, 24, 24.5, 27, 29.25, 32, 35.25]),
        # Slopes of 1/2, 3/2 (bounded to 1), 5/2.
        ("limited", [23, 23, 24, 24.5, 27, 28, 32, 34.5]),
    ],
)
def test_predictions_are_forecast_by_hand(forecast, expected):
    pipe = Pipeline(DummyUNet(), (0, 9, 1, 9, 4, 9, 9, 9))
    # Two of eight steps from one full step to the next: a stiffness of 0.4.
    pipe.guidance_scale = 1.6
    apply_deepcache(pipe, DeepCacheConfig(2, forecast=forecast, between="skipped"))
    assert run(pipe, 8) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("config", "pattern"),
    [
        (SKIPPED, "F--F--F"),
        (DeepCacheConfig(7, between="skipped"), "F------"),
        (DeepCacheConfig(4, between="alternating"), "F.-.F.-"),
        (DeepCacheConfig(schedule=ExplicitSchedule((0, 1, 4)), between="skipped"), "FF--F--"),
        (DeepCacheConfig(4, skip_mode="adaptive", threshold=1e9, between="skipped"), "FFF---F"),
    ],
)
def test_no_module_runs(config, pattern):
    pipe = Pipeline(DummyUNet())
    ran = observe(pipe.unet)
    engine = apply_deepcache(pipe, config)
    counts = []
    for step in range(7):
        ran.clear()
        pipe.call(1 + step, step)
        counts.append(len(ran))
    everything = sum(not isinstance(module, torch.nn.ModuleList) for module in pipe.unet.modules())
    signs = ["F" if count == everything else "-" if count == 0 else "." for count in counts]
    assert "".join(signs) == pattern == engine.stats.pattern
    stats = engine.stats
    found = (stats.full_steps, stats.shallow_steps, stats.skipped_steps)
    assert found == tuple(pattern.count(sign) for sign in "F.-")


def test_kinds_of_steps_mixed_by_a_plan():
    each = (
        Step(True),
        Step(False, forecast="none", skipped=True),
        Step(False, 0, "none"),
        Step(False, forecast="linear", skipped=True),
        Step(False, forecast="response", skipped=True),
        Step(True),
        Step(False, forecast="limited", skipped=True),
    )
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, DeepCacheConfig(schedule=StepSchedule(each)))
    found = run(pipe, noisy=lambda step: (1, 1, 2, 2, 4, 1, 1)[step])
    # Deep features are 22 noisy + timestep. The shallow step's prediction is stored: 34, with a slope of 1/2 per step
    # and a response of 1. At the last step the slope is 49/3, bounded to twice the slope before it, times the factor of
    # three of seven steps.
    assert found == pytest.approx([33, 33, 32 + 2, 34 + 0.5, 34 + 2, 83, 83 + (0.4 / (3 / 7)) ** 3])
    assert engine.stats.pattern == "F-.--F-"


def _by_input(args, kwargs):
    return float(args[0])


def test_each_call_of_a_step_has_its_own_forecast():
    pipe = Pipeline(DummyUNet())
    ran = observe(pipe.unet.mid_block)
    engine = apply_deepcache(pipe, DeepCacheConfig(2, forecast="linear", between="skipped"), slot_key=_by_input)
    found = [(pipe.call(1, step), pipe.call(2, step)) for step in range(6)]
    assert found == [(33, 56), (33, 56), (53, 76), (63, 86), (73, 96), (83, 106)]
    assert len(ran) == 3 * 2
    assert engine.stats.pattern == "F-F-F-"


@pytest.mark.parametrize(("interval", "ran"), [(1, 14), (2, 8), (3, 6), (7, 2)])
def test_both_calls_of_every_skipped_step_are_skipped(interval, ran):
    pipe = Pipeline(DummyUNet())
    modules = observe(pipe.unet.mid_block)
    apply_deepcache(pipe, DeepCacheConfig(interval, forecast="none", between="skipped"), slot_key=_by_input)
    for step in range(7):
        pipe.call(1, step), pipe.call(2, step)
    assert len(modules) == ran


def test_a_call_that_ends_or_begins_during_a_run():
    pipe = Pipeline(DummyUNet())
    apply_deepcache(pipe, DeepCacheConfig(2, forecast="none", between="skipped"), slot_key=_by_input)
    calls = (2, 2, 1, 1, 1, 2, 2)
    found = [[pipe.call(1 + call, step) for call in range(count)] for step, count in enumerate(calls)]
    # At step 5 the second call is new, and has no forecast.
    assert found == [[33, 56], [33, 56], [53], [53], [73], [73, 106], [93, 116]]


def test_a_scheduler_can_change_a_prediction_and_its_input_in_place():
    for forecast in ("none", "linear", "quadratic", "limited", "response"):
        found = []
        for spoils in (False, True):
            pipe = Pipeline(DummyUNet())
            apply_deepcache(pipe, DeepCacheConfig(3, forecast=forecast, between="skipped"))
            predictions = []
            for step, timestep in enumerate(pipe.scheduler.timesteps):
                sample = torch.full((1,), 1.0 + step)
                prediction = pipe.unet(sample, timestep)[0]
                predictions.append(prediction.item())
                if spoils:
                    prediction.mul_(100)
                    sample.zero_()
            found.append(predictions)
        assert found[0] == found[1]


class Bare(DummyUNet):
    def forward(self, noisy, when):
        return super().forward(noisy, when)[0]


@torch.no_grad()
def test_the_output_is_of_the_kind_that_the_unet_returns():
    bare = Pipeline(Bare())
    apply_deepcache(bare, SKIPPED)
    found = [bare.unet(torch.ones(1), timestep) for timestep in bare.scheduler.timesteps]
    assert [output.item() for output in found] == [33, 33, 33, 63, 73, 83, 93]
    pipe = Pipeline(tiny_unet(), (900, 700, 500))
    apply_deepcache(pipe, SKIPPED)
    sample, prompt = torch.ones(1, 4, 8, 8), torch.ones(1, 3, 8)
    for return_dict in (True, False):
        first, second, _ = (pipe.unet(sample, t, prompt, return_dict=return_dict) for t in pipe.scheduler.timesteps)
        assert type(second) is type(first)
        assert second[0] is not first[0]
        assert torch.equal(second[0], first[0])


def test_keyword_arguments_and_timesteps_that_are_numbers():
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, SKIPPED)
    found = [pipe.unet(when=timestep, noisy=torch.ones(1))[0].item() for timestep in (10, 20, 30, 40, 50, 60, 70)]
    assert found == [33, 33, 33, 63, 73, 83, 93]
    assert engine.stats.pattern == "F--F--F"


def test_runs_over_the_same_list_and_interrupted_runs():
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, SKIPPED)
    assert run(pipe) == run(pipe) == [33, 33, 33, 63, 73, 83, 93]
    for length in (1, 2, 3, 5):
        run(pipe, length)
        pipe.scheduler.timesteps = pipe.scheduler.timesteps.clone()
        assert run(pipe, noisy=lambda step: 2.0) == [56, 56, 56, 86, 96, 106, 116]
        assert engine.stats.pattern == "F--F--F"


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [0, 3])
def test_a_run_that_raised_in_the_unet_is_dropped(error, at):
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, SKIPPED)
    run(pipe, at)

    def fail(*_):
        raise error

    handle = pipe.unet.mid_block.register_forward_hook(fail)
    with pytest.raises(error):
        pipe.call(1, at)
    handle.remove()
    # A new run begins here, perhaps within a step: the second step is full as well.
    begun = 46 + 10 + 10 * (at + 1)
    assert [pipe.call(2, step) for step in range(at + 1, at + 4)] == [begun, begun + 10, begun + 10]
    pipe.scheduler.timesteps = pipe.scheduler.timesteps.clone()
    assert run(pipe) == [33, 33, 33, 63, 73, 83, 93]
    assert engine.stats.pattern == "F--F--F"


@pytest.mark.parametrize("length", range(8))
def test_the_unet_is_restored_at_any_step_of_a_run(length):
    pipe = Pipeline(DummyUNet())
    before = {module: dict(vars(module)) for module in pipe.unet.modules()}
    for config in (SKIPPED, DeepCacheConfig(4, between="alternating")):
        apply_deepcache(pipe, config)
        run(pipe, length)
        remove_deepcache(pipe)
        assert {module: dict(vars(module)) for module in pipe.unet.modules()} == before
        assert run(pipe) == [33, 43, 53, 63, 73, 83, 93]
        pipe.scheduler.timesteps = pipe.scheduler.timesteps.clone()


@COMPILES
def test_compiled_code_is_restored():
    pipe = Pipeline(DummyUNet())
    calls = []

    def compiled(*args):
        calls.append(args)
        return pipe.unet._call_impl(*args)

    pipe.unet._compiled_call_impl = compiled
    apply_deepcache(pipe, SKIPPED)
    assert run(pipe) == [33, 33, 33, 63, 73, 83, 93]
    assert len(calls) == 3
    run(pipe, 2)
    remove_deepcache(pipe)
    assert vars(pipe.unet)["_compiled_call_impl"] is compiled


@COMPILES
def test_a_pending_skipped_step_does_not_look_like_a_compiled_unet():
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, SKIPPED)
    pipe.call(1, 0)
    # It would raise on a compiled U-Net.
    engine.configure(DeepCacheConfig(3, compile="default", between="skipped"))
    engine.configure(SKIPPED)
    pipe.scheduler.timesteps = pipe.scheduler.timesteps.clone()
    assert run(pipe) == [33, 33, 33, 63, 73, 83, 93]
    run(pipe, 1)
    apply_deepcache(pipe, DeepCacheConfig(3, compile="default", between="skipped"))


def test_a_copy_during_a_run_begins_its_own_run():
    pipe = Pipeline(DummyUNet())
    apply_deepcache(pipe, SKIPPED)
    assert run(pipe, 4) == [33, 33, 33, 63]
    twin = copy.deepcopy(pipe)
    twin.scheduler.timesteps = twin.scheduler.timesteps.clone()
    ran = observe(twin.unet.mid_block)
    assert run(twin) == [33, 33, 33, 63, 73, 83, 93]
    assert len(ran) == 3
    remove_deepcache(twin)
    assert run(twin) == [33, 43, 53, 63, 73, 83, 93]
    assert [pipe.call(1, step) for step in (4, 5, 6)] == [73, 83, 93]


def test_gradients_come_from_the_whole_unet_and_are_not_a_step():
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, SKIPPED)
    found = []
    for step, timestep in enumerate(pipe.scheduler.timesteps):
        found.append(pipe.call(1, step))
        noisy = torch.ones(1, requires_grad=True)
        output = pipe.unet(noisy, timestep)[0]
        assert output.item() == 23 + timestep
        output.backward()
        assert noisy.grad == 23
    assert found == [33, 33, 33, 63, 73, 83, 93]
    assert engine.stats.pattern == "F--F--F"


def test_nothing_is_read_from_the_device(monkeypatch):
    for forecast in ("none", "linear", "limited", "response"):
        pipe = Pipeline(DummyUNet())
        engine = apply_deepcache(pipe, DeepCacheConfig(3, forecast=forecast, between="skipped"))
        noisy = torch.ones(1)
        with monkeypatch.context() as patch, NoTransfers(patch):
            for timestep in pipe.scheduler.timesteps:
                pipe.unet(noisy, timestep)
        assert engine.stats.pattern == "F--F--F"


def test_samples_at_several_timesteps_run_in_full_with_any_schedule():
    for mode in ("uniform", "non-uniform", "adaptive"):
        pipe = Pipeline(DummyUNet())
        engine = apply_deepcache(pipe, DeepCacheConfig(3, skip_mode=mode, between="skipped"))
        for start in (10, 20, 30):
            found = pipe.unet(torch.ones(2), torch.tensor([start, start + 10]))[0]
            assert found.tolist() == [23 + start, 33 + start]
        assert engine.stats.pattern == "FFF"


class Answered:
    """A pipeline whose U-Net runs at some calls only: the oracle for re-used and forecast predictions."""

    def __init__(self, pipe, pattern, forecast):
        forward, past, signs = pipe.unet.forward, [], iter(enumerate(pattern))

        def answer(*args, **kwargs):
            number, sign = next(signs)
            if sign == "F":
                output = forward(*args, **kwargs)
                past.append((number, output[0].clone()))
                return output
            (before, first), (last, second) = past[-2:] if len(past) > 1 else past * 2
            if forecast == "none" or before == last:
                return (second.clone(),)
            return (torch.add(second, (second - first) / (last - before), alpha=float(number - last)),)

        pipe.unet.forward = answer
        self.pipe = pipe


@pytest.mark.parametrize("forecast", ["none", "linear"])
@pytest.mark.parametrize("scheduler", [None, HeunDiscreteScheduler, PNDMScheduler])
@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_diffusers_pipelines_match_the_oracle(scheduler, guidance_scale, forecast):
    def pipeline():
        pipe = tiny_pipeline()
        if scheduler is not None:
            pipe.scheduler = scheduler()
        return pipe

    # Heun's and PNDM's timesteps are in the list more than once.
    calls = {None: 6, HeunDiscreteScheduler: 11, PNDMScheduler: 15}[scheduler]
    pattern = UniformSchedule(3).pattern(calls).replace(".", "-")
    pipe = pipeline()
    engine = apply_deepcache(pipe, DeepCacheConfig(3, forecast=forecast, between="skipped"))
    oracle = Answered(pipeline(), pattern, forecast).pipe
    assert torch.equal(generate(pipe, guidance_scale=guidance_scale), generate(oracle, guidance_scale=guidance_scale))
    assert engine.stats.pattern == pattern


@pytest.mark.parametrize("second", [{"steps": 4}, {"batch": 2}, {"size": 128}, {"guidance_scale": 1.0}, {"seed": 9}])
@pytest.mark.parametrize(
    "config",
    [
        DeepCacheConfig(3, forecast="response", between="skipped"),
        DeepCacheConfig(4, between="alternating"),
        DeepCacheConfig(3, skip_mode="adaptive", threshold=1e9, between="skipped"),
    ],
    ids=["skipped", "alternating", "adaptive"],
)
def test_a_second_run_with_other_settings_is_independent_of_the_first(config, second):
    pipe, fresh = tiny_pipeline(), tiny_pipeline()
    for each in (pipe, fresh):
        engine = apply_deepcache(each, config)
    generate(pipe)
    assert torch.equal(generate(pipe, **second), generate(fresh, **second))
    # The third of four adaptive steps is full, since no error is known before.
    assert engine.stats.skipped_steps > 0 or second == {"steps": 4}


def test_image_to_image_starts_with_a_full_step_at_any_strength():
    pipe = StableDiffusionImg2ImgPipeline(**tiny_pipeline().components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    engine = apply_deepcache(pipe, SKIPPED)
    for strength in (0.9, 0.5, 0.2):
        generator = torch.Generator().manual_seed(0)
        image, prompt = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 3, 8, generator=generator)
        embeds = {"prompt_embeds": prompt, "negative_prompt_embeds": prompt}
        pipe(
            **embeds, image=image, strength=strength, num_inference_steps=10, generator=generator, output_type="latent"
        )
        assert engine.stats.pattern == "F--F--F--F"[: round(10 * strength)]


@COUNTS
def test_the_cost_is_that_of_the_steps_that_ran():
    shares = {}
    for between in ("shallow", "skipped", "alternating"):
        pipe = tiny_pipeline()
        engine = apply_deepcache(pipe, DeepCacheConfig(3, forecast="none", between=between))
        generate(pipe)
        shares[between] = engine.stats.mac_share
    assert shares["skipped"] == 2 / 6
    assert shares["alternating"] == pytest.approx((shares["shallow"] + shares["skipped"]) / 2)
    assert "2 full, 2 shallow and 2 skipped steps" in str(engine.stats)


def test_stored_tensors_are_counted_and_freed():
    for forecast, tensors in (("none", 1), ("linear", 2), ("quadratic", 3), ("response", 4)):
        pipe = Pipeline(DummyUNet())
        engine = apply_deepcache(pipe, DeepCacheConfig(2, forecast=forecast, between="skipped"))
        run(pipe)
        assert engine.stats.bytes_kept == tensors * 4
        assert not kept_slots(engine)


@OFFLOADS_ALL
@pytest.mark.integration("accelerate offloading")
@pytest.mark.parametrize("first", ["offloading", "DeepCache"])
def test_offloading_changes_nothing(first):
    plain, pipe = tiny_pipeline(), tiny_pipeline()
    apply_deepcache(plain, SKIPPED)
    if first == "offloading":
        cpu_offload(pipe.unet, torch.device("cpu"))
        engine = apply_deepcache(pipe, SKIPPED)
    else:
        engine = apply_deepcache(pipe, SKIPPED)
        cpu_offload(pipe.unet, torch.device("cpu"))
    expected = generate(plain)
    assert torch.equal(generate(pipe), expected)
    assert engine.stats.pattern == "F--F--"
    remove_hook_from_submodules(pipe.unet)
    assert torch.equal(generate(pipe), expected)


def test_a_swapped_unet_has_its_steps_skipped_and_the_first_is_restored():
    pipe = Pipeline(DummyUNet())
    first = pipe.unet
    before = dict(vars(DummyUNet()))
    engine = apply_deepcache(pipe, SKIPPED)
    run(pipe, 2)
    pipe.unet = DummyUNet()
    assert set(vars(first)) == set(before)
    pipe.scheduler.timesteps = pipe.scheduler.timesteps.clone()
    assert run(pipe) == [33, 33, 33, 63, 73, 83, 93]
    assert engine.stats.pattern == "F--F--F"


@pytest.mark.parametrize("between", ["shallow", "skipped", "alternating"])
@pytest.mark.parametrize("mode", ["uniform", "non-uniform", "adaptive"])
def test_an_interval_of_one_changes_no_bit(mode, between):
    plain, pipe = tiny_pipeline(), tiny_pipeline()
    engine = apply_deepcache(pipe, DeepCacheConfig(1, skip_mode=mode, between=between))
    assert torch.equal(generate(pipe, 4), generate(plain, 4))
    assert (engine.stats.pattern, engine.stats.bytes_kept) == ("FFFF", 0)


def test_an_adaptive_schedule_of_interval_one_stores_nothing():
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, DeepCacheConfig(schedule=AdaptiveSchedule(0.1, 1), between="skipped"))
    assert run(pipe) == [33, 43, 53, 63, 73, 83, 93]
    assert engine.stats.bytes_kept == 0
