"""What is timed: whole pipeline calls, and the calls of the U-Net alone."""

from __future__ import annotations

from inspect import signature

import pytest
import torch

from DeepCache import DeepCacheConfig
from DeepCache.bench import benchmark
from DeepCache.bench.benchmark import BenchmarkSettings, run_benchmark
from DeepCache.bench.variants import parse_variant
from DeepCache.bench.workload import PipelineCall, UnetLoop, default_size
from DeepCache.engine import stats
from DeepCache.engine.attach import apply_deepcache
from DeepCache.engine.cost import Costs
from DeepCache.models import load_pipeline, set_scheduler
from tests.bench.small_models import unconditional_pipeline
from tests.tune.small_pipeline import small_pipeline

# Some schedulers of diffusers hand a tensor to NumPy.
pytestmark = [
    pytest.mark.usefixtures("remembered_costs"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def refiner():
    pipe = load_pipeline("sdxl-refiner-tiny", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def video():
    pipe = load_pipeline("svd-tiny", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Calls:
    """The U-Net calls that are made on a pipeline: a copy of each sample, and each timestep as it came."""

    def __init__(self, pipe):
        self.samples, self.timesteps = [], []
        self._handle = pipe.unet.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, unet, args, kwargs):
        self.samples.append(args[0].clone())
        self.timesteps.append(args[1] if len(args) > 1 else kwargs["timestep"])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._handle.remove()


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: load_pipeline("shapes", device="cpu"), (64, 64)),
        (lambda: load_pipeline("sd15-tiny", device="cpu"), (64, 64)),
        (small_pipeline, (16, 16)),
        (unconditional_pipeline, (16, 16)),
        (lambda: unconditional_pipeline(sample_size=(8, 24)), (24, 8)),
    ],
    ids=["shapes", "sd15-tiny", "small", "unconditional", "unconditional, height and width"],
)
def test_default_size_is_that_of_the_images(make, size):
    assert default_size(make()) == size


def test_an_architecture_overrides_the_default_size_of_a_video_pipeline(video, tmp_path, monkeypatch):
    assert default_size(video) == (1024, 576)
    for module in (benchmark, stats):
        monkeypatch.setattr(module, "count_costs", lambda *_: Costs(100, {0: 10}, {0: 32}))
    settings = BenchmarkSettings(
        "svd-tiny", (parse_variant("I=2"),), steps=2, rounds=1, warm_up=0, scopes=("unet",), fewer_steps=False
    )
    result = run_benchmark(settings, tmp_path / "video.json", device="cpu")
    assert result["settings"]["grid"]["sizes"] == [[64, 64]]
    (cell,) = result["cells"]
    assert (cell["width"], cell["height"], cell["status"]) == (64, 64, "done")
    assert result["settings"]["guidance"] is None


def test_a_pipeline_with_prompts_gets_one_prompt_per_image():
    call = PipelineCall(batch=3, size=(24, 16), steps=4, guidance=2.0, seed=5)
    arguments = call.arguments(small_pipeline())
    assert len(arguments.pop("prompt")) == 3
    generator = arguments.pop("generator")
    assert (generator.device.type, generator.initial_seed()) == ("cpu", 5)
    assert arguments == {"width": 24, "height": 16, "num_inference_steps": 4, "guidance_scale": 2.0}


def test_a_pipeline_without_prompts_gets_the_batch_size():
    arguments = PipelineCall(batch=3, size=(16, 16), steps=4).arguments(unconditional_pipeline())
    assert arguments.keys() == {"batch_size", "num_inference_steps", "generator"}
    assert arguments["batch_size"] == 3


def test_an_image_to_image_pipeline_gets_the_same_image_every_time(refiner):
    call = PipelineCall(batch=2, size=(64, 72), steps=4)
    arguments = call.arguments(refiner)
    assert [image.size for image in arguments["image"]] == [(64, 72)] * 2
    assert len(arguments["prompt"]) == 2
    assert not {"width", "height", "batch_size", "guidance_scale"} & arguments.keys()
    again = PipelineCall(batch=1, size=(64, 72), steps=9, seed=3).arguments(refiner)
    assert again["image"][0].tobytes() == arguments["image"][0].tobytes()
    other = PipelineCall(batch=1, size=(72, 64), steps=4).arguments(refiner)
    assert other["image"][0].size == (72, 64)


def test_every_argument_is_a_parameter_of_the_pipeline(refiner, video):
    for pipe in (refiner, video, small_pipeline(), unconditional_pipeline()):
        call = PipelineCall(batch=1, size=default_size(pipe), steps=2)
        assert call.arguments(pipe).keys() <= signature(pipe.__call__).parameters.keys()


def test_a_pipeline_that_requires_other_inputs_is_refused():
    class Inpainting:
        def __call__(self, prompt, mask_image, image=None, **others):
            raise AssertionError

    with pytest.raises(ValueError, match="a Inpainting requires 'mask_image', which a benchmark does not have"):
        PipelineCall(1, (64, 64), 2).arguments(Inpainting())


def test_a_guidance_scale_is_refused_for_a_pipeline_without_one(video):
    with pytest.raises(ValueError, match="a StableVideoDiffusionPipeline has no guidance scale, got 3"):
        PipelineCall(1, (64, 64), 2, guidance=3.0).arguments(video)


def test_a_size_is_refused_for_a_pipeline_without_one():
    pipe = unconditional_pipeline()
    with pytest.raises(ValueError, match="the size of a DDPMPipeline is always 16x16, got 32x32"):
        PipelineCall(1, (32, 32), 2).arguments(pipe)
    PipelineCall(1, (16, 16), 2)(pipe)


@pytest.mark.parametrize("steps", [7, 10])
def test_the_loop_of_a_refiner_starts_at_the_first_timestep_of_the_refiner(refiner, steps):
    call = PipelineCall(batch=1, size=(64, 64), steps=steps)
    loop = UnetLoop.of(refiner, call)
    with Calls(refiner) as piped:
        refiner(**call.arguments(refiner), output_type="latent")
    # Of the steps asked for, the last three tenths.
    assert len(piped.timesteps) == int(0.3 * steps) == loop.calls
    assert loop.first == steps - loop.calls
    with Calls(refiner) as looped:
        loop(refiner)
    assert [float(t) for t in looped.timesteps] == [float(t) for t in piped.timesteps]
    assert all(torch.equal(sample, piped.samples[0]) for sample in looped.samples)


@pytest.mark.parametrize("make", [small_pipeline, unconditional_pipeline])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_loop_has_the_calls_and_arguments_of_the_pipeline(make, batch):
    pipe = make()
    call = PipelineCall(batch, (16, 16), steps=4)
    loop = UnetLoop.of(pipe, call)
    with Calls(pipe) as piped:
        call(pipe)
    with Calls(pipe) as looped:
        loop(pipe)
    assert loop.calls == len(piped.timesteps) == len(looped.timesteps) == 4
    assert [float(t) for t in looped.timesteps] == [float(t) for t in piped.timesteps]
    assert all(torch.equal(sample, piped.samples[0]) for sample in looped.samples)


def test_the_loop_has_all_calls_of_a_second_order_scheduler():
    pipe = small_pipeline()
    set_scheduler(pipe, "heun")
    assert UnetLoop.of(pipe, PipelineCall(1, (16, 16), steps=4)).calls == 7


def test_creating_a_loop_does_not_run_the_unet_and_leaves_no_hook():
    pipe = small_pipeline()
    ran = []
    handle = pipe.unet.register_forward_hook(lambda *_: ran.append(1))
    loop = UnetLoop.of(pipe, PipelineCall(1, (16, 16), steps=4))
    assert not ran
    handle.remove()
    assert not pipe.unet._forward_pre_hooks
    loop(pipe)
    assert not pipe.unet._forward_pre_hooks


def test_the_loop_uses_neither_scheduler_nor_autoencoder(monkeypatch):
    pipe = small_pipeline()
    loop = UnetLoop.of(pipe, PipelineCall(1, (16, 16), steps=4))

    def not_called(*_, **__):
        raise AssertionError

    monkeypatch.setattr(pipe.scheduler, "step", not_called)
    monkeypatch.setattr(pipe.vae, "decode", not_called)
    monkeypatch.setattr(pipe, "encode_prompt", not_called)
    loop(pipe)


@pytest.mark.parametrize(
    "config",
    [
        DeepCacheConfig(3, forecast="none"),
        DeepCacheConfig(2, 1, forecast="linear"),
        DeepCacheConfig(3, skip_mode="non-uniform"),
        DeepCacheConfig(2, guidance_reuse=True),
    ],
)
def test_a_loop_with_deepcache_follows_the_schedule_in_every_run(config):
    pipe = small_pipeline()
    loop = UnetLoop.of(pipe, PipelineCall(1, (16, 16), steps=7, guidance=3.0))
    engine = apply_deepcache(pipe, config)
    whole = None
    for _ in range(3):
        loop(pipe)
        assert engine.stats.pattern == config.effective_schedule.pattern(7)
        whole = whole or engine.stats
        assert engine.stats == whole
    # And where a run was cut short before.
    for timestep in loop.timesteps[:2]:
        with torch.no_grad():
            pipe.unet(loop.args[0], timestep, **loop.kwargs)
    engine.end_run()
    loop(pipe)
    assert engine.stats == whole


def test_the_loop_of_a_refiner_with_deepcache_starts_with_a_full_step(refiner):
    loop = UnetLoop.of(refiner, PipelineCall(1, (64, 64), steps=10))
    engine = apply_deepcache(refiner, DeepCacheConfig(2))
    try:
        for _ in range(2):
            loop(refiner)
            assert engine.stats.pattern == "F.F"
    finally:
        engine.detach()


def test_a_timestep_that_is_not_a_view_makes_a_loop_over_all_timesteps():
    pipe = unconditional_pipeline()

    class Whole(type(pipe)):
        def __call__(self, batch_size=1, num_inference_steps=4, generator=None):
            self.scheduler.set_timesteps(num_inference_steps)
            for timestep in self.scheduler.timesteps:
                self.unet(torch.zeros(batch_size, 3, 16, 16), timestep=int(timestep))

    pipe.__class__ = Whole
    loop = UnetLoop.of(pipe, PipelineCall(1, (16, 16), steps=4))
    assert (loop.first, loop.calls) == (0, 4)
    with Calls(pipe) as looped:
        loop(pipe)
    assert [int(t) for t in looped.timesteps] == pipe.scheduler.timesteps.tolist()
