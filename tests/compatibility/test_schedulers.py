"""DeepCache with every scheduler of diffusers that a pipeline with a U-Net takes, counted in U-Net calls."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import replace
from functools import cache
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDPMPipeline,
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.schedulers import AysSchedules, KarrasDiffusionSchedulers

from DeepCache import DeepCacheSDHelper
from DeepCache.engine.trajectory import Trajectory
from tests.compatibility.conftest import Witness, expect_warnings
from tests.compatibility.page import INSTALLED, written_for
from tests.compatibility.pipelines import CASES as PIPELINES
from tests.compatibility.schedulers import (
    CASES,
    NOT_TAKEN,
    OWN_PIPELINES,
    FoundScheduler,
    SchedulerCase,
    UntakenScheduler,
    find_schedulers,
    one_a_step,
    runge_kutta_then_multistep,
)
from tests.engine.tiny_pipeline import generate, tiny_pipeline

# Some schedulers are of another age than the numpy they meet.
pytestmark = [
    pytest.mark.usefixtures("nothing_is_counted"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

STABLE_DIFFUSION = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
SMALLEST: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 8),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
STEPS, OTHER_STEPS = 7, 4

# The timesteps that consistency models are trained at are among them.
TIMESTEPS = [999, 799, 599, 399, 199]
FLOW_SIGMAS = [1.0, 0.8, 0.6, 0.4, 0.2]
# What a scheduler is configured with to take sigmas, the sigmas, and the steps they make.
SIGMAS: dict[str, tuple[dict[str, Any], Any, int]] = {
    "EulerDiscreteScheduler": ({}, AysSchedules["StableDiffusionSigmas"], 10),
    "EDMEulerScheduler": ({}, torch.linspace(0, 1, 5), 5),
    "UniPCMultistepScheduler": (
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
        np.array(FLOW_SIGMAS),
        5,
    ),
    "FlowMatchEulerDiscreteScheduler": ({}, FLOW_SIGMAS, 5),
    "FlowMatchLCMScheduler": ({}, FLOW_SIGMAS, 5),
    # The zero is listed among its timesteps, but no step begins there.
    "LTXEulerAncestralRFScheduler": ({}, [*FLOW_SIGMAS, 0.0], 5),
}

# The options that choose the timesteps or the method, and their values.
CHOICES = {
    "timestep_spacing": {"leading", "trailing", "linspace"},
    "final_sigmas_type": {"zero", "sigma_min"},
    "sigma_schedule": {"karras", "exponential"},
    "timestep_type": {"discrete", "continuous"},
    "interpolation_type": {"linear", "log_linear"},
    "skip_prk_steps": {False, True},
    "stochastic_sampling": {False, True},
    "invert_sigmas": {False, True},
}
ALGORITHMS = {
    "DPMSolverMultistepScheduler": {"dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"},
    # The stochastic ones add noise up to infinity there, without DeepCache too.
    "DPMSolverMultistepInverseScheduler": {"dpmsolver", "dpmsolver++"},
    "DPMSolverSinglestepScheduler": {"dpmsolver", "dpmsolver++", "sde-dpmsolver++"},
    "EDMDPMSolverMultistepScheduler": {"dpmsolver++", "sde-dpmsolver++"},
    "DEISMultistepScheduler": {"deis"},
    "SASolverScheduler": {"data_prediction", "noise_prediction"},
}

# Values that a class refuses, does not look at, or fails with, without DeepCache too.
NOT_POSSIBLE = {
    "CosineDPMSolverMultistepScheduler": {"sigma_min"},
    "DDIMInverseScheduler": {"linspace"},
    "LCMScheduler": {"trailing", "linspace"},
    "TCDScheduler": {"trailing", "linspace"},
}

found = cache(find_schedulers)


def _scheduler(name: str, config: dict[str, Any]) -> Any:
    scheduler: FoundScheduler = found()[name]
    if scheduler.needs:
        pytest.skip(f"{name} needs {' and '.join(scheduler.needs)}")
    try:
        return scheduler.member.from_config(config)
    except ImportError as error:
        pytest.skip(f"{name}: {error}")


def _stable_diffusion_pipeline(scheduler: Any) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    pipe = tiny_pipeline(
        UNet2DConditionModel(**SMALLEST, mid_block_type="UNetMidBlock2D", cross_attention_dim=8).eval()
    )
    pipe.scheduler = scheduler
    return pipe


def _pixel_pipeline(scheduler: Any) -> DDPMPipeline:
    torch.manual_seed(0)
    pipe = DDPMPipeline(UNet2DModel(**SMALLEST, add_attention=False).eval(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _pipeline(case: SchedulerCase) -> Any:
    expect_warnings(case)
    if case.pipeline == "DDPMPipeline":
        return _pixel_pipeline(_scheduler(case.scheduler, dict(case.options)))
    return _stable_diffusion_pipeline(_scheduler(case.scheduler, {**STABLE_DIFFUSION, **case.options}))


def _generate(case: SchedulerCase, pipe: Any, steps: int) -> torch.Tensor:
    if case.pipeline == "DDPMPipeline":
        # Older versions of diffusers always return an array.
        return torch.as_tensor(
            pipe(num_inference_steps=steps, generator=torch.Generator().manual_seed(0), output_type="pt").images
        )
    return generate(pipe, steps, **case.call)


def _generate_from_image(pipe: StableDiffusionImg2ImgPipeline, strength: float) -> None:
    generator = torch.Generator().manual_seed(0)
    prompt, negative, image = torch.randn(3, 1, 4, 8, 8, generator=generator).unbind()
    pipe(
        prompt_embeds=prompt[:, :3, 0],
        negative_prompt_embeds=negative[:, :3, 0],
        image=image,
        strength=strength,
        num_inference_steps=10,
        generator=generator,
        output_type="latent",
    )


def _pattern(interval: int, calls: int) -> str:
    return ("F".ljust(interval, ".") * calls)[:calls]


def _helper(pipe: Any, interval: int = 3) -> DeepCacheSDHelper:
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    return helper


def _members() -> set[type[Any] | None]:
    return {scheduler.member for scheduler in found().values()}


def _takes(case: SchedulerCase, parameter: str) -> bool:
    member = found()[case.scheduler].member
    return member is not None and parameter in inspect.signature(member.set_timesteps).parameters


# One variant of every scheduler, and more where the noise or the number of U-Net calls is of another kind.
ONE_OF_EACH = list({(case.scheduler, case.random, case.calls): case for case in reversed(CASES)}.values())[::-1]
REPEATING = [case for case in ONE_OF_EACH if case.calls is not one_a_step]
# Runge-Kutta steps cannot begin in the middle.
FROM_IMAGE_TO_IMAGE = [
    case
    for case in REPEATING
    if case.pipeline == "StableDiffusionPipeline" and case.calls is not runge_kutta_then_multistep
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@every_case
def test_full_steps_are_spread_evenly_over_the_unet_calls(case):
    pipe = _pipeline(case)
    seen = Witness(pipe.unet)
    with _helper(pipe, 3) as helper:
        for steps in (STEPS, OTHER_STEPS):
            _generate(case, pipe, steps)
            pattern = seen.take()
            assert pattern == _pattern(3, case.calls(steps))
            assert helper.stats.pattern == pattern


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_interval_one_and_disable_are_bit_identical(case):
    pipe = _pipeline(case)
    plain = _generate(case, pipe, OTHER_STEPS)
    assert plain.isfinite().all()

    helper = _helper(pipe, interval=1)
    helper.enable()
    assert torch.equal(_generate(case, pipe, OTHER_STEPS), plain)

    helper.set_params(cache_interval=3)
    cached = _generate(case, pipe, OTHER_STEPS)
    assert not torch.equal(cached, plain)
    assert torch.equal(_generate(case, pipe, OTHER_STEPS), cached)

    helper.disable()
    assert torch.equal(_generate(case, pipe, OTHER_STEPS), plain)


@pytest.mark.parametrize("case", [case for case in CASES if case.least_steps == 1], ids=str)
def test_one_step_is_full(case):
    pipe = _pipeline(case)
    plain = _generate(case, pipe, 1)
    seen = Witness(pipe.unet)
    with _helper(pipe) as helper:
        generated = _generate(case, pipe, 1)
    assert case.calls(1) == 1
    assert seen.take() == helper.stats.pattern == "F"
    assert torch.equal(generated, plain)


@every_case
def test_random_schedulers_are_marked(case):
    """With the same start, only the steps can make two runs differ."""
    pipe = _pipeline(case)

    def run(seed: int) -> torch.Tensor:
        pipe.scheduler.set_timesteps(STEPS)
        given = {"generator": torch.Generator().manual_seed(seed), "eta": 0.0, **case.call}
        takes = inspect.signature(pipe.scheduler.step).parameters
        sample = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
        for timestep in pipe.scheduler.timesteps:
            scaled = getattr(pipe.scheduler, "scale_model_input", lambda sample, _: sample)(sample, timestep)
            kwargs = {name: value for name, value in given.items() if name in takes}
            sample = pipe.scheduler.step(scaled / 2, timestep, sample, **kwargs).prev_sample
        return sample

    assert torch.equal(run(0), run(0))
    assert torch.equal(run(0), run(1)) is not case.random


@torch.no_grad()
def _generate_with(case: SchedulerCase, pipe: Any, steps: int, **given: Any) -> None:
    """A run with custom timesteps or sigmas."""
    if case.pipeline == "StableDiffusionPipeline":
        generate(pipe, None, **given)
        return
    # The test pipeline accepts neither; that of DreamLite works like this.
    pipe.scheduler.set_timesteps(**given)
    sample = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for timestep in pipe.scheduler.timesteps[:steps]:
        output = pipe.unet(sample, timestep.expand(1)).sample
        sample = pipe.scheduler.step(output, timestep, sample).prev_sample


@pytest.mark.parametrize("case", [case for case in ONE_OF_EACH if _takes(case, "timesteps")], ids=str)
def test_custom_timesteps_are_counted_from_the_first(case):
    pipe = _pipeline(case)
    seen = Witness(pipe.unet)
    with _helper(pipe):
        for _ in range(2):
            _generate_with(case, pipe, len(TIMESTEPS), timesteps=TIMESTEPS)
            assert seen.take() == _pattern(3, case.calls(len(TIMESTEPS)))


@pytest.mark.parametrize("name", SIGMAS)
def test_custom_sigmas_are_counted_from_the_first(name):
    case = next(case for case in CASES if case.scheduler == name)
    options, sigmas, steps = SIGMAS[name]
    case = replace(case, options=options)
    pipe = _pipeline(case)
    seen = Witness(pipe.unet)
    with _helper(pipe):
        for _ in range(2):
            _generate_with(case, pipe, steps, sigmas=sigmas)
            assert seen.take() == _pattern(3, steps)


def test_sigmas_are_tested_where_they_are_accepted():
    assert {case.scheduler for case in CASES if _takes(case, "sigmas")} == set(SIGMAS)


@pytest.mark.parametrize("case", REPEATING, ids=str)
def test_repeated_timesteps_in_new_tensors_are_found_by_their_value(case):
    """As a pipeline that passes `torch.tensor([t, t])` in every call."""
    pipe = _pipeline(case)
    pipe.unet.register_forward_pre_hook(lambda unet, args: (args[0], args[1].clone(), *args[2:]))
    seen = Witness(pipe.unet)
    with _helper(pipe):
        for steps in (STEPS, OTHER_STEPS):
            _generate(case, pipe, steps)
            assert seen.take() == _pattern(3, case.calls(steps))


@pytest.mark.parametrize("case", [case for case in ONE_OF_EACH if case.pipeline == "DDPMPipeline"], ids=str)
def test_timesteps_rounded_to_half_precision_are_counted(case):
    """What DreamLite's pipeline gives its U-Net: a tensor of the batch's length and of the weights' precision."""
    pipe = _pipeline(case)
    pipe.unet.register_forward_pre_hook(lambda unet, args: (args[0], args[1].expand(1).to(torch.bfloat16)))
    seen = Witness(pipe.unet)
    with _helper(pipe):
        for steps in (STEPS, OTHER_STEPS):
            _generate(case, pipe, steps)
            assert seen.take() == _pattern(3, case.calls(steps))


@every_case
def test_every_timestep_is_found_by_its_value(case):
    """What a pipeline gives its U-Net that turns the timesteps into numbers."""
    scheduler = _pipeline(case).scheduler
    trajectory = Trajectory()
    for steps in (STEPS, OTHER_STEPS):
        scheduler.set_timesteps(steps)
        moments = [trajectory.locate(timestep.item(), scheduler) for timestep in scheduler.timesteps]
        assert [(moment.step, moment.slot) for moment in moments] == [(step, 0) for step in range(case.calls(steps))]
        assert [moment.starts for moment in moments] == [True] + [False] * (len(moments) - 1)


@pytest.mark.parametrize("case", FROM_IMAGE_TO_IMAGE, ids=str)
def test_image_to_image_starts_full_in_the_middle_of_the_timesteps(case):
    components = _pipeline(case).components
    pipe = StableDiffusionImg2ImgPipeline(**components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    seen = Witness(pipe.unet)
    with _helper(pipe) as helper:
        for strength, steps in ((0.6, 6), (1.0, 10), (0.3, 3)):
            _generate_from_image(pipe, strength)
            pattern = seen.take()
            assert pattern == _pattern(3, case.calls(steps))
            assert helper.stats.pattern == pattern


@pytest.mark.parametrize("name", OWN_PIPELINES)
def test_schedulers_with_their_own_pipelines_are_tested_with_them(name):
    for pipeline in OWN_PIPELINES[name]:
        types = getattr(diffusers, pipeline)._get_signature_types()
        assert name in {member.__name__ for member in types["scheduler"]}
    assert {case.pipeline for case in PIPELINES}.issuperset(OWN_PIPELINES[name])


def test_timesteps_of_stable_cascade_are_found():
    scheduler = diffusers.DDPMWuerstchenScheduler()
    trajectory = Trajectory()
    for steps in (STEPS, OTHER_STEPS, 1, 1):
        scheduler.set_timesteps(steps)
        used = scheduler.timesteps[:-1]
        moments = [trajectory.locate(timestep.expand(2), scheduler) for timestep in used]
        assert [moment.step for moment in moments] == list(range(steps))
        assert [moment.starts for moment in moments] == [True] + [False] * (steps - 1)


@pytest.mark.skipif(written_for() > INSTALLED, reason="classes that diffusers has taken out since are not listed")
def test_no_scheduler_of_diffusers_is_missing():
    listed = [*{case.scheduler for case in CASES}, *OWN_PIPELINES, *(untaken.scheduler for untaken in NOT_TAKEN)]
    assert sorted(listed) == sorted(find_schedulers())


def test_every_scheduler_of_a_working_pipeline_is_a_case():
    named = {member.name for member in KarrasDiffusionSchedulers}
    for name in {case.pipeline for case in PIPELINES}:
        with warnings.catch_warnings():
            # Of the packages that some pipelines load.
            warnings.simplefilter("ignore")
            pipeline = getattr(diffusers, name)
        if issubclass(pipeline, DiffusionPipeline):
            for component, alternatives in pipeline._get_signature_types().items():
                if "scheduler" in component:
                    named |= {member.__name__ for member in alternatives if member in _members()}
    assert named <= {case.scheduler for case in CASES} | OWN_PIPELINES.keys()


@pytest.mark.parametrize("untaken", NOT_TAKEN, ids=lambda untaken: untaken.scheduler)
def test_other_schedulers_fail_in_the_pipelines(untaken: UntakenScheduler):
    if untaken.scheduler not in found():
        pytest.skip(f"diffusers {diffusers.__version__} has no {untaken.scheduler}")
    for pipeline, pipe, error in zip(
        ("StableDiffusionPipeline", "DDPMPipeline"),
        (_stable_diffusion_pipeline(None), _pixel_pipeline(None)),
        untaken.errors,
        strict=True,
    ):
        pipe.scheduler = _scheduler(untaken.scheduler, dict(untaken.options))
        with pytest.raises((AttributeError, KeyError, RuntimeError, TypeError, ValueError), match=error):
            _generate(SchedulerCase(untaken.scheduler, pipeline=pipeline), pipe, STEPS)


@pytest.mark.parametrize("name", sorted({case.scheduler for case in CASES}))
def test_every_option_for_timesteps_or_method_is_a_case(name):
    member = found()[name].member
    if member is None:
        pytest.skip(f"{name} needs {' and '.join(found()[name].needs)}")
    rows = [{**STABLE_DIFFUSION, **case.options} for case in CASES if case.scheduler == name]
    for option in inspect.signature(member.__init__).parameters.values():
        tried = [row.get(option.name, option.default) for row in rows]
        if option.name in CHOICES:
            assert set(tried) >= CHOICES[option.name] - NOT_POSSIBLE.get(name, set()), option.name
        elif option.name == "algorithm_type":
            assert set(tried) >= ALGORITHMS[name]
        elif option.name.startswith("use_") and option.name.endswith(("_sigmas", "_lambdas")):
            assert any(tried), option.name
