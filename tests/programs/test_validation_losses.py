"""Training programs measure losses at random timesteps: one image per call, with or without captions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler

from DeepCache import DeepCacheConfig, apply_deepcache
from tests.programs.by_hand import Calls, sampled_to_the_end, text
from tests.programs.quick_unet import quick_unet

IMAGES = 24


def as_given(timesteps):
    """Iterates over the tensor of random timesteps."""
    return timesteps


def as_rows(timesteps):
    return timesteps[:, None]


def as_columns(timesteps):
    """A column of a table of timesteps for each image and repetition."""
    return torch.stack([timesteps, timesteps.flip(0)], dim=1)[:, 0]


def as_tensors(timesteps):
    return [t.clone() for t in timesteps]


def as_batches(timesteps):
    return [t.clone().view(1) for t in timesteps]


def as_int(timesteps):
    return timesteps.tolist()


def as_float(timesteps):
    return [float(t) for t in timesteps]


def as_sigmas(timesteps):
    """Continuous noise levels."""
    return [t / 1000 + 0.0001 for t in timesteps.tolist()]


AS = [as_given, as_rows, as_columns, as_tensors, as_batches, as_int, as_float, as_sigmas]


def without_scheduler():
    return None


def new():
    """With all thousand timesteps, as after `from_pretrained`."""
    return DDPMScheduler()


def after_sampling():
    scheduler = DDPMScheduler()
    scheduler.set_timesteps(50)
    return scheduler


SCHEDULERS = [without_scheduler, new, after_sampling, sampled_to_the_end]


class Losses:
    def __init__(self, scheduler, caption):
        self.unet, self._caption, self._images = quick_unet(), caption, 0
        self.calls = Calls(self.unet)
        apply_deepcache(SimpleNamespace(unet=self.unet, scheduler=scheduler), DeepCacheConfig(5, forecast="none"))

    @torch.no_grad()
    def measure(self, timesteps):
        """The signs of one call per timestep, each for another image."""
        for t in timesteps:
            self._images += 1
            prompt = text(self._images if self._caption == "own" else 0)
            self.calls(torch.randn(1, 4, 8, 8), t, encoder_hidden_states=prompt, purpose=self._images)
        return self.calls.take()


def random_timesteps(seed=0, count=IMAGES, most=1000):
    return torch.randint(0, most, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", AS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_random_timesteps_are_plain(kind, scheduler):
    losses = Losses(scheduler(), "none")
    assert losses.measure(kind(random_timesteps())) == "F" * IMAGES


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_many_random_timesteps_are_plain(scheduler):
    """Some of them are neighbours by chance."""
    losses = Losses(scheduler(), "none")
    assert losses.measure(random_timesteps(1, 80, most=50).tolist()) == "F" * 80


@pytest.mark.parametrize("kind", [as_tensors, as_int, as_float])
@pytest.mark.parametrize(
    "timesteps", [[812, 301, 300, 77], [500, 812, 811, 20], [500, 500, 499, 3], [812, 700, 588, 40]]
)
def test_neighbouring_timesteps(kind, timesteps):
    losses = Losses(new(), "none")
    assert losses.measure(kind(torch.tensor(timesteps))) == "F" * len(timesteps)


@pytest.mark.parametrize("kind", AS)
@pytest.mark.parametrize("order", [False, True], ids=["rising", "falling"])
def test_captions_distinguish_images_at_ordered_timesteps(kind, order):
    losses = Losses(new(), "own")
    timesteps = random_timesteps().sort(descending=order).values
    assert losses.measure(kind(timesteps)) == "F" * IMAGES


@pytest.mark.parametrize("caption", ["own", "none"])
def test_one_timestep_for_all_images(caption):
    losses = Losses(new(), caption)
    assert losses.measure([torch.tensor(500)] * IMAGES) == "F" * IMAGES
    assert losses.measure([torch.tensor(500) for _ in range(IMAGES)]) == "F" * IMAGES


@pytest.mark.parametrize("caption", ["own", "none"])
def test_all_images_at_each_timestep_of_the_scheduler(caption):
    """Each image has a slot, by its order."""
    scheduler = after_sampling()
    losses = Losses(scheduler, caption)
    found = ""
    for t in scheduler.timesteps[:6]:
        losses._images = 0
        found += losses.measure([t] * 4) + " "
    assert found == ("FFFF .... .... .... .... FFFF " if caption == "own" else "FFFF FFFF .... .... .... FFFF ")


def test_a_batch_of_timesteps():
    losses = Losses(new(), "none")
    with torch.no_grad():
        for image in range(6):
            prompt = text(0, batch=4)
            timesteps = random_timesteps(image, 4)
            losses.calls(torch.randn(4, 4, 8, 8), timesteps, encoder_hidden_states=prompt, purpose=image)
    assert losses.calls.take() == "FFFFFF"
