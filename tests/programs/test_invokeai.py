"""InvokeAI copies timesteps for the batch, with guidance in one call or two. Others subclass the helper."""

from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache
from tests.programs.by_hand import Calls, PlainCopy, text
from tests.programs.quick_unet import quick_pipeline

STEPS = 8
COND, UNCOND = text(0), text(1)


def as_int(t, batch):
    return int(t)


def as_python_number(t, batch):
    return t.item()


def as_batch(t, batch):
    return torch.full((batch,), t.item())


def as_expanded(t, batch):
    return t.clone().expand(batch)


def as_float(t, batch):
    return t.clone().to(torch.float32)


AS = [as_int, as_python_number, as_batch, as_expanded, as_float]


class Loop:
    """Denoises images one after the other."""

    def __init__(self, kind, sequential, scheduler=None, steps=STEPS):
        self.pipe = quick_pipeline()
        if scheduler is not None:
            self.pipe.scheduler = scheduler()
        self.calls = Calls(self.pipe.unet)
        self.engine = apply_deepcache(self.pipe, DeepCacheConfig(3, forecast="none"))
        self._kind, self._sequential, self._steps, self._images = kind, sequential, steps, 0

    @torch.inference_mode()
    def image(self, first=0, begin=True):
        scheduler = self.pipe.scheduler
        if begin:
            scheduler.set_timesteps(self._steps)
        self._images += 1
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(self._images))
        signs = []
        for t in scheduler.timesteps[first:]:
            noise_uncond, noise_cond = self._predict(scheduler.scale_model_input(latents, t), t)
            latents = scheduler.step(noise_uncond + 2 * (noise_cond - noise_uncond), t, latents).prev_sample
            signs.append(self.calls.take())
        return " ".join(signs)

    def _predict(self, latents, t):
        if not self._sequential:
            both = torch.cat([UNCOND, COND])
            noise = self.calls(
                torch.cat([latents] * 2), self._kind(t, 2), encoder_hidden_states=both, purpose=self._images
            )
            return noise.chunk(2)
        return [
            self.calls(latents, self._kind(t, 1), encoder_hidden_states=prompt, purpose=(self._images, name))
            for prompt, name in ((UNCOND, "uncond"), (COND, "cond"))
        ]


@pytest.mark.parametrize("kind", AS)
@pytest.mark.parametrize("sequential", [False, True])
def test_loop_follows_the_schedule(kind, sequential):
    loop = Loop(kind, sequential)
    full, shallow = ("FF", "..") if sequential else ("F", ".")
    expected = " ".join(full if step % 3 == 0 else shallow for step in range(STEPS))
    for _ in range(3):
        assert loop.image() == expected


@pytest.mark.parametrize("kind", AS)
@pytest.mark.parametrize("sequential", [False, True])
def test_image_to_image_starts_in_the_middle(kind, sequential):
    loop = Loop(kind, sequential)
    full, shallow = ("FF", "..") if sequential else ("F", ".")
    for first in (3, 4):
        assert loop.image(first) == " ".join(full if step % 3 == 0 else shallow for step in range(STEPS - first))


@pytest.mark.parametrize("kind", [as_int, as_batch, as_float])
@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler])
def test_schedulers_that_count_their_steps(kind, scheduler):
    loop = Loop(kind, True, scheduler, steps=4)
    for _ in range(2):
        signs = loop.image().split()
        assert signs == ["FF" if step % 3 == 0 else ".." for step in range(len(signs))]


@pytest.mark.parametrize("sequential", [False, True])
def test_next_image_with_the_same_timesteps(sequential):
    loop = Loop(as_int, sequential)
    first = loop.image()
    assert loop.image(begin=False) == first


@torch.no_grad()
def test_subclass_of_a_subclass_with_a_rule():
    class Named(DeepCacheSDHelper):
        label = "named"

    class Windowed(Named):
        def is_skip_step(self, block_i, layer_i, blocktype="down"):
            return 2 <= self.cur_timestep < 5 and (blocktype != "up" or (block_i, layer_i) > (0, 0))

    loop = Loop(as_int, True)
    DeepCacheSDHelper(loop.pipe).disable()
    with Windowed(loop.pipe):
        assert loop.image() == "FF FF .. .. .. FF FF FF"


@torch.no_grad()
def test_subclass_that_extends_enable():
    class Counting(DeepCacheSDHelper):
        def __init__(self, pipe=None):
            super().__init__(pipe)
            self.enabled = 0

        def enable(self, pipe=None):
            self.enabled += 1
            super().enable(pipe)

    pipe = quick_pipeline()
    calls, helper = Calls(pipe.unet), Counting(pipe)
    helper.set_params(cache_interval=3)
    helper.enable()
    pipe.scheduler.set_timesteps(6)
    for t in pipe.scheduler.timesteps:
        calls(torch.randn(1, 4, 8, 8), t, encoder_hidden_states=COND)
    assert (calls.take(), helper.enabled) == ("F..F..", 1)


@torch.no_grad()
def test_calls_of_forward_are_plain():
    pipe = quick_pipeline()
    plain = PlainCopy(pipe.unet)
    DeepCacheSDHelper(pipe).enable()
    pipe.scheduler.set_timesteps(6)
    for t in pipe.scheduler.timesteps:
        latents = torch.randn(1, 4, 8, 8)
        pipe.unet(latents, t, encoder_hidden_states=COND)
        found = pipe.unet.forward(latents, t, encoder_hidden_states=COND).sample
        assert torch.equal(found, plain.full(latents, t, encoder_hidden_states=COND))
