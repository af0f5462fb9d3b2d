"""Guiders of modular pipelines make one call per prediction, and change them during a run."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from diffusers import HeunDiscreteScheduler

from DeepCache import DeepCacheConfig, apply_deepcache
from tests.programs.by_hand import Calls, text
from tests.programs.quick_unet import quick_pipeline

COND, UNCOND = text(0), text(1)
PROMPTS = {"c": COND, "u": UNCOND, "s": COND}


@contextmanager
def mid_block_skipped(*unets):
    """As skip-layer guidance does in its third call, which has the prompt of the first."""
    handles = [unet.mid_block.register_forward_hook(lambda module, args, output: args[0]) for unet in unets]
    yield
    for handle in handles:
        handle.remove()


class Held:
    """The same two tensors for the whole run."""

    def prompt(self, kind):
        return PROMPTS[kind]


class Views:
    """Views of one tensor, created for each call."""

    def __init__(self):
        self._both = torch.cat([UNCOND, COND])

    def prompt(self, kind):
        return self._both.chunk(2)[kind != "u"]


class MadeAgain:
    """A new tensor for each call."""

    def prompt(self, kind):
        return PROMPTS[kind].clone()


class WrittenInPlace:
    """One tensor that each call's prompt is written into, as CUDA graphs require."""

    def __init__(self):
        self._buffer = torch.empty_like(COND)

    def prompt(self, kind):
        return self._buffer.copy_(PROMPTS[kind])


class WrittenBehindTheCounter(WrittenInPlace):
    """The same by `.data`, which counts no version."""

    def prompt(self, kind):
        self._buffer.data.copy_(PROMPTS[kind])
        return self._buffer


class WrittenByNumpy:
    """The same through an array that shares the memory."""

    def __init__(self):
        self._array = COND.numpy().copy()
        self._buffer = torch.from_numpy(self._array)

    def prompt(self, kind):
        self._array[:] = PROMPTS[kind].numpy()
        return self._buffer


def denoise(run, prompts=None, interval=3):
    """Makes the listed calls of each step, and returns their signs."""
    pipe = quick_pipeline()
    calls = Calls(pipe.unet)
    apply_deepcache(pipe, DeepCacheConfig(interval, forecast="none"))
    pipe.scheduler.set_timesteps(len(run))
    prompts = Held() if prompts is None else prompts
    latents, signs = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)), []
    for t, kinds in zip(pipe.scheduler.timesteps, run, strict=True):
        for kind in kinds:
            with mid_block_skipped(*([pipe.unet, calls.plain.unet] if kind == "s" else [])):
                noise = calls(latents, t, encoder_hidden_states=prompts.prompt(kind), purpose=kind)
        signs.append(calls.take())
        latents = pipe.scheduler.step(noise, t, latents).prev_sample
    return " ".join(signs)


RUNS = {
    "guidance stops, the skip call stays": ("cus cus cus cus cs cs cs cs", "FFF F.F ... FFF .. .. FF .."),
    "guidance stops, a skip call begins": ("cu cu cu cu cs cs cs cs", "FF .. .. FF .F FF FF .."),
    "guidance begins, uncond first": ("c c c c uc uc uc uc", "F . . F F. .. FF .."),
    "uncond first, and later omitted": ("uc uc uc uc uc c c c", "FF .. .. FF .. . F ."),
    "guidance on part of the run": ("c c uc uc uc c c c", "F . F. FF .. . F ."),
    "guidance on part of the run, cond first": ("c cu cu cu cu cu c c", "F .F .. FF .. .. F ."),
    "a prompt for each half of the run": ("u u u u c c c c", "F . . F F . F ."),
    "the calls change places": ("cu uc cu uc cu uc cu uc", "FF .. .. FF .. .. FF .."),
}


@pytest.mark.parametrize("kind", [Held, Views, MadeAgain, WrittenInPlace])
@pytest.mark.parametrize("name", RUNS)
@torch.no_grad()
def test_each_call_continues_the_call_of_the_same_prediction(name, kind):
    run, signs = RUNS[name]
    assert denoise(run.split(), kind()) == signs


@pytest.mark.parametrize("kind", [Held, Views, MadeAgain, WrittenInPlace])
@torch.inference_mode()
def test_in_inference_mode(kind):
    run, signs = RUNS["uncond first, and later omitted"]
    assert denoise(run.split(), kind()) == signs


@pytest.mark.parametrize("kind", [WrittenBehindTheCounter, WrittenByNumpy])
@torch.no_grad()
def test_untracked_writes_to_memory(kind):
    run, _ = RUNS["uncond first, and later omitted"]
    assert "X" not in denoise(run.split(), kind())


def by_value(stepped, interval=3):
    """A Heun run in two calls a step whose timesteps are given by value."""
    pipe = quick_pipeline()
    pipe.scheduler = HeunDiscreteScheduler()
    calls = Calls(pipe.unet)
    apply_deepcache(pipe, DeepCacheConfig(interval, forecast="none"))
    pipe.scheduler.set_timesteps(4)
    latents, signs = torch.ones(1, 4, 8, 8), []
    for t in pipe.scheduler.timesteps:
        noise = torch.zeros_like(latents)
        for kind in "cu":
            noise += calls(latents, float(t), encoder_hidden_states=PROMPTS[kind], purpose=kind)
        latents = pipe.scheduler.step(noise, t, latents).prev_sample if stepped else latents - 0.1 * noise
        signs.append(calls.take())
    return " ".join(signs)


@torch.no_grad()
def test_repeats_by_value():
    assert by_value(stepped=True) == "FF .. .. FF .. .. FF"


@torch.no_grad()
def test_indistinguishable_repeats_by_value():
    assert "X" not in by_value(stepped=False)
