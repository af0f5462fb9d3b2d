"""Full steps fall where the schedule says with every scheduler that Stable Diffusion takes, counted in U-Net calls."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.schedulers import KarrasDiffusionSchedulers

from DeepCache import DeepCacheSDHelper
from DeepCache.schedule import UniformSchedule
from tests.engine.tiny_pipeline import draw, tiny_pipeline

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
    "pndm": ("PNDMScheduler", {}),
    "pndm with runge-kutta steps": ("PNDMScheduler", {"skip_prk_steps": False}),
    "ipndm": ("IPNDMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "heun karras": ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "kdpm2 ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
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
    "kdpm2 ancestral": 13,
}


def _pipeline(name: str) -> StableDiffusionPipeline:
    pipe = tiny_pipeline()
    class_name, options = SCHEDULERS[name]
    try:
        pipe.scheduler = getattr(diffusers, class_name).from_config(STABLE_DIFFUSION | options)
    except ImportError as error:
        pytest.skip(str(error).strip().splitlines()[0])
    return pipe


def test_every_scheduler_that_stable_diffusion_takes_is_among_them():
    tested = {class_name for class_name, _ in SCHEDULERS.values()}
    assert {member.name for member in KarrasDiffusionSchedulers} <= tested


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("interval", [2, 3])
def test_full_steps_are_spread_evenly_over_the_unet_calls(interval, name, witness):
    pipe = _pipeline(name)
    seen = witness(pipe.unet)
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()

    draw(pipe, steps=7)
    pattern = seen.take()
    assert pattern == UniformSchedule(interval).pattern(CALLS.get(name, 7))
    assert helper.stats.pattern == pattern

    draw(pipe, steps=5)
    pattern = seen.take()
    assert pattern == UniformSchedule(interval).pattern(len(pattern))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_with_interval_one_and_after_disable_no_bit_differs(name):
    plain = draw(_pipeline(name), steps=4)

    pipe = _pipeline(name)
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=1)
    helper.enable()
    assert torch.equal(draw(pipe, steps=4), plain)

    helper.set_params(cache_interval=3)
    assert not torch.equal(draw(pipe, steps=4), plain)

    helper.disable()
    assert torch.equal(draw(pipe, steps=4), plain)


@pytest.mark.parametrize("name", ["heun", "kdpm2", "pndm"])
def test_two_runs_with_repeated_timesteps_are_the_same(name):
    pipe = _pipeline(name)
    with DeepCacheSDHelper(pipe):
        assert torch.equal(draw(pipe, steps=4), draw(pipe, steps=4))


@pytest.mark.parametrize("name", ["heun", "kdpm2", "pndm", "pndm with runge-kutta steps"])
def test_repeated_timesteps_given_as_fresh_tensors_are_told_apart_by_their_value(name, witness):
    """What a pipeline does that makes the timesteps anew for every call, `torch.tensor([t, t])`."""
    pipe = _pipeline(name)
    with DeepCacheSDHelper(pipe):
        pipe.unet.register_forward_pre_hook(lambda unet, args: (args[0], args[1].clone(), *args[2:]), prepend=True)
        seen = witness(pipe.unet)
        draw(pipe, steps=7)
        assert seen.take() == UniformSchedule(3).pattern(CALLS[name])
        draw(pipe, steps=5)
        assert seen.take().startswith("F..F..")


def test_timesteps_given_by_the_caller_are_counted_from_the_first(witness):
    pipe = _pipeline("ddpm")
    seen = witness(pipe.unet)
    with DeepCacheSDHelper(pipe):
        draw(pipe, steps=None, timesteps=[900, 700, 500, 300, 100])
    assert seen.take() == "F..F."
