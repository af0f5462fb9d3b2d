"""Full steps fall where the schedule says with every scheduler that Stable Diffusion takes, counted in U-Net calls."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers import KarrasDiffusionSchedulers

from DeepCache import DeepCacheSDHelper
from DeepCache.schedule import UniformSchedule

# Of another age than the numpy they meet.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "clip_sample": False,
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
}

# Name of the class, and what it is configured with beyond Stable Diffusion's own.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddim trailing": ("DDIMScheduler", {"timestep_spacing": "trailing"}),
    "ddim parallel": ("DDIMParallelScheduler", {}),
    "ddim inverse": ("DDIMInverseScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "ddpm parallel": ("DDPMParallelScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "pndm with runge-kutta steps": ("PNDMScheduler", {"skip_prk_steps": False}),
    "ipndm": ("IPNDMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "heun karras": ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "kdpm2 karras": ("KDPM2DiscreteScheduler", {"use_karras_sigmas": True}),
    "kdpm2 ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpm-solver++": ("DPMSolverMultistepScheduler", {}),
    "dpm-solver++ sde karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "dpm-solver++ inverse": ("DPMSolverMultistepInverseScheduler", {}),
    "dpm-solver++ single step": ("DPMSolverSinglestepScheduler", {}),
    "dpm-solver sde": ("DPMSolverSDEScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "sa-solver": ("SASolverScheduler", {}),
    "edm euler": ("EDMEulerScheduler", {}),
    "edm dpm-solver++": ("EDMDPMSolverMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "consistency models": ("CMStochasticIterativeScheduler", {}),
}

# U-Net calls in seven steps, where they are not seven: the repeated timesteps.
CALLS = {
    "pndm": 8,  # the first step is made twice
    "pndm with runge-kutta steps": 16,  # three steps of four calls each, then four of one
    "heun": 13,  # every step but the last is made of two calls
    "heun karras": 13,
    "kdpm2": 13,
    "kdpm2 karras": 13,
    "kdpm2 ancestral": 13,
}


def _scheduler(name: str) -> Any:
    class_name, options = SCHEDULERS[name]
    try:
        return getattr(diffusers, class_name).from_config(STABLE_DIFFUSION | options)
    except ImportError as error:
        pytest.skip(str(error).strip().splitlines()[0])


def test_every_scheduler_that_stable_diffusion_takes_is_among_them():
    tested = {class_name for class_name, _ in SCHEDULERS.values()}
    assert {member.name for member in KarrasDiffusionSchedulers} <= tested


@pytest.mark.parametrize("interval", [2, 3])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_full_steps_are_spread_evenly_over_the_unet_calls(name, interval, make_pipe, draw, witness):
    pipe = make_pipe(_scheduler(name))
    seen = witness(pipe.unet)
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()

    draw(pipe, steps=7)
    expected = UniformSchedule(interval).pattern(CALLS.get(name, 7))
    assert seen.take() == expected
    assert helper.stats.pattern == expected

    draw(pipe, steps=7)
    assert seen.take() == expected

    draw(pipe, steps=4)
    again = seen.take()
    assert again == UniformSchedule(interval).pattern(len(again))
    assert helper.stats.pattern == again


@pytest.mark.parametrize("name", SCHEDULERS)
def test_with_interval_one_and_after_disable_nothing_differs(name, make_pipe, draw):
    plain = draw(make_pipe(_scheduler(name)), steps=5)

    pipe = make_pipe(_scheduler(name))
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=1)
    helper.enable()
    assert torch.equal(draw(pipe, steps=5), plain)

    helper.set_params(cache_interval=3)
    assert not torch.equal(draw(pipe, steps=5), plain)

    helper.disable()
    assert torch.equal(draw(pipe, steps=5), plain)


@pytest.mark.parametrize("name", ["heun", "kdpm2", "pndm"])
def test_two_runs_with_repeated_timesteps_are_the_same(name, make_pipe, draw):
    pipe = make_pipe(_scheduler(name))
    with DeepCacheSDHelper(pipe):
        assert torch.equal(draw(pipe, steps=5), draw(pipe, steps=5))


def test_the_scheduler_may_be_replaced_while_enabled(make_pipe, draw, witness):
    pipe = make_pipe(_scheduler("ddim"))
    seen = witness(pipe.unet)
    with DeepCacheSDHelper(pipe):
        draw(pipe, steps=4)
        pipe.scheduler = _scheduler("heun")
        draw(pipe, steps=4)
    assert seen.pattern == "F..F" + "F..F..F"


def test_timesteps_given_by_the_caller_are_counted_from_the_first(make_pipe, draw, witness):
    pipe = make_pipe(_scheduler("ddpm"))
    seen = witness(pipe.unet)
    with DeepCacheSDHelper(pipe):
        draw(pipe, steps=None, timesteps=[900, 700, 500, 300, 100])
    assert seen.pattern == "F..F."


def test_an_interrupted_run_leaves_nothing_to_the_next(make_pipe, draw, witness):
    def interrupt(pipe, step, timestep, kwargs):
        pipe._interrupt = step == 1
        return kwargs

    pipe = make_pipe(_scheduler("ddim"))
    seen = witness(pipe.unet)
    with DeepCacheSDHelper(pipe):
        draw(pipe, steps=6, callback_on_step_end=interrupt)
        assert seen.take() == "F."
        fresh = draw(pipe, steps=6)
        assert seen.take() == "F..F.."
    with DeepCacheSDHelper(make_pipe(_scheduler("ddim"))) as other:
        assert torch.equal(draw(other.pipe, steps=6), fresh)


def test_a_run_that_raises_leaves_nothing_to_the_next(make_pipe, draw, witness):
    def fail(pipe, step, timestep, kwargs):
        if step == 1:
            raise RuntimeError("stop")
        return kwargs

    pipe = make_pipe(_scheduler("ddim"))
    seen = witness(pipe.unet)
    with DeepCacheSDHelper(pipe):
        with pytest.raises(RuntimeError, match="stop"):
            draw(pipe, steps=6, callback_on_step_end=fail)
        assert seen.take() == "F."
        draw(pipe, steps=6)
        assert seen.take() == "F..F.."
