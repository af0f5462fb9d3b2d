"""MuseTalk calls its U-Net once per batch of frames, always at one timestep, with the audio as prompt."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler

from DeepCache import DeepCacheConfig, apply_deepcache
from tests.engine.dummy_unet import DummyUNet
from tests.engine.slots import kept_slots
from tests.programs.by_hand import PlainCopy, text
from tests.programs.quick_unet import quick_unet

INTERVAL = DeepCacheConfig(3, forecast="none")


def without_scheduler():
    return None


def with_a_list():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(50)
    assert 0 in scheduler.timesteps
    return scheduler


def with_all_timesteps():
    return DDIMScheduler()


@pytest.mark.parametrize("scheduler", [without_scheduler, with_a_list, with_all_timesteps])
@pytest.mark.parametrize("audio", ["of each batch", "silence"])
@torch.no_grad()
def test_every_frame_is_plain(scheduler, audio):
    unet, timesteps = quick_unet(), torch.tensor([0])
    plain = PlainCopy(unet)
    engine = apply_deepcache(SimpleNamespace(unet=unet, scheduler=scheduler()), INTERVAL)
    for frame in range(40):
        latents, prompt = torch.randn(2, 4, 8, 8), text(frame if audio == "of each batch" else 0, batch=2)
        output = unet(latents, timesteps, encoder_hidden_states=prompt).sample
        assert torch.equal(output, plain.full(latents, timesteps, encoder_hidden_states=prompt)), frame
    assert len(kept_slots(engine)) <= 40


@pytest.mark.parametrize("scheduler", [without_scheduler, with_a_list, with_all_timesteps])
@pytest.mark.usefixtures("nothing_is_counted")
@torch.no_grad()
def test_memory_of_thousands_of_frames_is_limited(scheduler):
    unet, timesteps = DummyUNet(), torch.tensor([0])
    plain = DummyUNet()
    engine = apply_deepcache(SimpleNamespace(unet=unet, scheduler=scheduler()), INTERVAL)
    for frame in range(3000):
        latents = torch.tensor([float(frame)])
        assert unet(latents, timesteps)[0] == plain(latents, timesteps)[0]
    assert len(kept_slots(engine)) <= 128
    assert engine.stats.bytes_kept < 128 * 64


@torch.no_grad()
def test_number_of_stored_prompts_is_limited():
    unet, timesteps = quick_unet(), torch.tensor([0])
    engine = apply_deepcache(unet, INTERVAL)
    for frame in range(300):
        unet(torch.ones(1, 4, 8, 8), timesteps, encoder_hidden_states=text(frame))
    store = next(iter(engine._caches[""]._threads._progress.values())).run.store
    assert len(store._held) <= 129


@torch.no_grad()
def test_other_sizes_of_the_last_batch():
    unet, timesteps = quick_unet(), torch.tensor([0])
    plain = PlainCopy(unet)
    apply_deepcache(unet, INTERVAL)
    for batch in (4, 4, 4, 1, 4, 4, 2):
        latents, prompt = torch.randn(batch, 4, 8, 8), text(0, batch)
        output = unet(latents, timesteps, encoder_hidden_states=prompt).sample
        assert torch.equal(output, plain.full(latents, timesteps, encoder_hidden_states=prompt))
