"""Loops like those of k-diffusion: noise levels by value, one or two calls per step, and more or fewer levels than the
scheduler of the pipeline has."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, LCMScheduler

from DeepCache import DeepCacheConfig, apply_deepcache
from tests.engine.tiny_pipeline import generate
from tests.programs.by_hand import Calls, sampled_to_the_end, scheduled, text
from tests.programs.quick_unet import quick_pipeline, quick_unet

COND, UNCOND = text(0), text(1)


def karras(steps):
    """Noise levels that get closer to each other towards the end."""
    return (torch.linspace(14.6**0.143, 0.03**0.143, steps, dtype=torch.float64) ** 7).float()


def evenly(steps):
    return torch.linspace(14.6, 0.03, steps)


def none():
    return None


def unused():
    return DDIMScheduler()


def short():
    """With fewer steps than the loop."""
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(3)
    return scheduler


def halfway():
    """After an incomplete run."""
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(20)
    scheduler.is_scale_input_called = True
    for t in scheduler.timesteps[:9]:
        scheduler.step(torch.ones(1), t, torch.ones(1))
    return scheduler


def of_one_step():
    scheduler = LCMScheduler()
    scheduler.set_timesteps(1)
    return scheduler


SCHEDULERS = [none, unused, short, sampled_to_the_end, halfway, of_one_step]


class Sampler:
    def __init__(self, scheduler=None, interval=3):
        self.unet = quick_unet()
        self.pipe = SimpleNamespace(unet=self.unet, scheduler=scheduler)
        self.calls = Calls(self.unet)
        self.engine = apply_deepcache(self.pipe, DeepCacheConfig(interval, forecast="none"))
        self._images = 0

    @torch.no_grad()
    def sample(self, sigmas, order=1, prompts=(COND,), as_given=lambda sigma: sigma * 1.0, image=None):
        """The signs of the calls of an image, those of a noise level together."""
        self._images += 1
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(self._images))
        signs = []
        for index, sigma in enumerate(sigmas):
            levels = [sigma] if order == 1 or index + 1 == len(sigmas) else [sigma, sigmas[index + 1]]
            for level in levels:
                for number, prompt in enumerate(prompts):
                    purpose = (self._images, number)
                    noise = self.calls(latents, as_given(level), encoder_hidden_states=prompt, purpose=purpose)
                    latents = latents - 0.1 * noise
                signs.append(self.calls.take())
        return " ".join(signs)


def assert_only_its_own(signs, prompts=1):
    """The first calls of an image are full, and no call has the deep feature of another image or prompt."""
    assert "X" not in signs
    assert signs.startswith("F" * prompts)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("prompts", [(COND,), (UNCOND, COND)], ids=["one call", "two calls"])
@pytest.mark.parametrize("sigmas", [karras, evenly])
def test_noise_levels_of_a_custom_loop(scheduler, prompts, sigmas):
    sampler = Sampler(scheduler())
    for steps in (12, 5, 12):
        assert_only_its_own(sampler.sample(sigmas(steps), prompts=prompts), len(prompts))


@pytest.mark.parametrize("scheduler", [none, short, of_one_step])
def test_long_run_is_cached_once_it_is_recognized(scheduler):
    sampler = Sampler(scheduler())
    signs = sampler.sample(evenly(15)).split()
    assert "X" not in signs
    assert signs[6:] == ["F" if step % 3 == 0 else "." for step in range(6, 15)]


@pytest.mark.parametrize("as_given", [float, torch.clone, lambda sigma: sigma * torch.ones(1)])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_types_of_noise_levels(as_given, scheduler):
    sampler = Sampler(scheduler())
    for _ in range(2):
        assert_only_its_own(sampler.sample(karras(10), as_given=as_given))


@pytest.mark.parametrize("prompts", [(COND,), (UNCOND, COND)], ids=["one call", "two calls"])
def test_views_of_a_list_of_levels(prompts):
    sampler = Sampler(unused())
    for _ in range(2):
        signs = sampler.sample(karras(9), prompts=prompts, as_given=lambda sigma: sigma)
        step = ["F" * len(prompts), *["." * len(prompts)] * 2]
        assert signs == " ".join(step * 3)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("prompts", [(COND,), (UNCOND, COND)], ids=["one call", "two calls"])
@pytest.mark.parametrize("as_given", [float, lambda sigma: sigma], ids=["by value", "views"])
def test_two_calls_per_step(scheduler, prompts, as_given):
    """Heun's method: at a level and at the next one, and then at that again."""
    sampler = Sampler(scheduler())
    for _ in range(2):
        assert_only_its_own(sampler.sample(karras(8), 2, prompts, as_given), len(prompts))


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler])
@pytest.mark.parametrize("prompts", [(COND,), (UNCOND, COND)], ids=["one call", "two calls"])
def test_more_calls_than_timesteps(kind, prompts):
    """A sampler that calls at each timestep and once between each two, and continues beyond the end."""
    scheduler = kind()
    scheduler.set_timesteps(6)
    timesteps = [float(t) for t in scheduler.timesteps]
    between = [(one + other) / 2 for one, other in zip(timesteps, timesteps[1:], strict=False)]
    levels = torch.tensor(sorted({*timesteps, *between, 0.25, 0.5}, reverse=True))
    sampler = Sampler(scheduler)
    for _ in range(3):
        assert_only_its_own(sampler.sample(levels, prompts=prompts, as_given=float), len(prompts))


def test_single_step_list_of_another_pipeline():
    """An upscaler or consistency model shares the pipeline of the U-Net, and the loop has its own levels."""
    pipe = quick_pipeline()
    pipe.scheduler = of_one_step()
    expected = generate(quick_pipeline(scheduled(pipe.unet, "F..F..")))
    apply_deepcache(pipe, DeepCacheConfig(3, forecast="none"))
    other = quick_pipeline(pipe.unet)
    for _ in range(2):
        assert torch.equal(generate(other), expected)
        calls = Calls(scheduled(pipe.unet, "F"), called=pipe.unet)
        with torch.no_grad():
            for image in range(4):
                calls(torch.randn(1, 4, 8, 8), pipe.scheduler.timesteps[0], encoder_hidden_states=COND, purpose=image)
        assert calls.take() == "FFFF"


@pytest.mark.parametrize("scheduler", [sampled_to_the_end, halfway])
def test_stale_index_of_the_scheduler(scheduler):
    """Its own timesteps by value, without a step of it in between."""
    sampler = Sampler(scheduler())
    timesteps = sampler.pipe.scheduler.timesteps
    for _ in range(3):
        assert_only_its_own(sampler.sample(timesteps, as_given=float))


@pytest.mark.parametrize("scheduler", [sampled_to_the_end, halfway])
def test_constant_level_with_a_stale_index(scheduler):
    sampler = Sampler(scheduler())
    with torch.no_grad():
        for image in range(12):
            sampler.calls(torch.randn(1, 4, 8, 8), 3.7, encoder_hidden_states=COND, purpose=image)
    assert sampler.calls.take() == "F" * 12


def test_restarts_that_go_back_up():
    """Restart sampling: down to a level, back up, and down again."""
    sampler = Sampler(none())
    levels = evenly(10).tolist()
    run = torch.tensor([*levels[:8], *levels[4:8], *levels[4:8], *levels[8:]])
    for _ in range(2):
        assert_only_its_own(sampler.sample(run, as_given=float))
