"""StreamDiffusion repeats a few timesteps: all in one batch of frames, one by one, or a single one."""

from __future__ import annotations

import pytest
import torch
from diffusers import LCMScheduler

from DeepCache import DeepCacheConfig, apply_deepcache
from tests.engine.slots import kept_slots
from tests.programs.by_hand import Calls, text
from tests.programs.quick_unet import quick_pipeline

FRAMES = 12


class Stream:
    """Frames over a few timesteps out of a list of fifty."""

    def __init__(self, chosen, own_scheduler=True):
        self.pipe = quick_pipeline()
        self.pipe.scheduler = LCMScheduler()
        self.calls = Calls(self.pipe.unet)
        self.engine = apply_deepcache(self.pipe, DeepCacheConfig(3, forecast="none"))
        scheduler = LCMScheduler() if own_scheduler else self.pipe.scheduler
        scheduler.set_timesteps(50)
        self.timesteps = torch.tensor([scheduler.timesteps[index] for index in chosen])
        self.prompt, self._generator = text(0), torch.Generator().manual_seed(0)

    def frame(self, batch=1):
        return torch.randn(batch, 4, 8, 8, generator=self._generator)

    def call(self, latents, t, frame):
        prompt = self.prompt.repeat(len(latents), 1, 1)
        return self.calls(latents, t, encoder_hidden_states=prompt, purpose=frame, return_dict=False)


@pytest.mark.parametrize("own_scheduler", [True, False], ids=["own scheduler", "the pipeline's"])
@pytest.mark.parametrize("chosen", [[32], [0], [49]])
@torch.no_grad()
def test_single_step_is_plain(chosen, own_scheduler):
    stream = Stream(chosen, own_scheduler)
    for frame in range(FRAMES):
        stream.call(stream.frame(), stream.timesteps, frame)
    assert stream.calls.take() == "F" * FRAMES
    assert len(kept_slots(stream.engine)) <= FRAMES


@torch.no_grad()
def test_single_step_for_several_frames():
    stream = Stream([32])
    timesteps = torch.repeat_interleave(stream.timesteps, 2)
    for frame in range(FRAMES):
        stream.call(stream.frame(2), timesteps, frame)
    assert stream.calls.take() == "F" * FRAMES


@torch.no_grad()
def test_single_step_with_a_row_for_guidance():
    stream = Stream([32])
    for frame in range(FRAMES):
        stream.call(stream.frame(2), torch.cat([stream.timesteps[0:1], stream.timesteps]), frame)
    assert stream.calls.take() == "F" * FRAMES


@torch.no_grad()
def test_all_steps_in_a_batch_are_plain():
    stream = Stream([18, 26, 35, 45])
    buffer = torch.zeros(3, 4, 8, 8)
    for frame in range(FRAMES):
        latents = torch.cat([stream.frame(), buffer])
        buffer = stream.call(latents, stream.timesteps, frame)[:-1]
    assert stream.calls.take() == "F" * FRAMES


@pytest.mark.parametrize("own_scheduler", [True, False], ids=["own scheduler", "the pipeline's"])
@pytest.mark.parametrize("chosen", [[18, 26, 35, 45], [10, 20, 30, 40], [0, 1, 2, 3], [30], [20, 40]])
@torch.no_grad()
def test_steps_use_nothing_of_another_frame(chosen, own_scheduler):
    stream = Stream(chosen, own_scheduler)
    for frame in range(FRAMES):
        latents = stream.frame()
        for t in stream.timesteps:
            latents = latents - 0.1 * stream.call(latents, t.view(1).repeat(1), frame)
    signs = stream.calls.take()
    assert "X" not in signs
    assert all(signs[start] == "F" for start in range(0, len(signs), len(chosen)))


@torch.no_grad()
def test_list_of_timesteps_is_a_run_per_frame():
    stream = Stream([10, 20, 30, 40])
    for frame in range(FRAMES):
        latents = stream.frame()
        for t in stream.timesteps:
            latents = latents - 0.1 * stream.call(latents, t, frame)
    assert stream.calls.take() == "F..F" * FRAMES


@torch.no_grad()
def test_prompt_changes_during_the_stream():
    stream = Stream([10, 20, 30, 40])
    for frame in range(FRAMES):
        stream.prompt = text(frame)
        latents = stream.frame()
        for t in stream.timesteps:
            latents = latents - 0.1 * stream.call(latents, t, frame)
    assert stream.calls.take() == "F..F" * FRAMES
