"""Calls before the loop, loops that stop early, and several images with one list of timesteps."""

from __future__ import annotations

import pytest
import torch

from DeepCache import DeepCacheConfig, apply_deepcache
from tests.programs.by_hand import Calls, text
from tests.programs.quick_unet import quick_pipeline

STEPS = 9
SCHEDULE = "F..F..F.."


class Loop:
    def __init__(self):
        self.pipe = quick_pipeline()
        self.calls = Calls(self.pipe.unet)
        self.engine = apply_deepcache(self.pipe, DeepCacheConfig(3, forecast="none"))
        self.pipe.scheduler.set_timesteps(STEPS)
        self.timesteps = self.pipe.scheduler.timesteps
        self._generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def run(self, first=0, last=STEPS, image=0, prompts=(0,), as_number=False):
        """The signs of steps `first` to `last`."""
        for step in range(first, last):
            self.call(step, image, prompts, as_number)
        return self.calls.take()

    @torch.no_grad()
    def call(self, step, image=0, prompts=(0,), as_number=False):
        t = self.timesteps[step]
        latents = torch.randn(1, 4, 8, 8, generator=self._generator)
        for prompt in prompts:
            embeds = text(prompt)
            self.calls(latents, int(t) if as_number else t, encoder_hidden_states=embeds, purpose=(image, prompt))


@pytest.mark.parametrize("as_number", [False, True])
@pytest.mark.parametrize("calls", [1, 2, 3])
@pytest.mark.parametrize("prompt", [0, 1], ids=["its prompt", "another prompt"])
def test_warm_up_calls_do_not_affect_the_image(as_number, calls, prompt):
    loop = Loop()
    for _ in range(calls):
        loop.call(0, "warm-up", (prompt,), as_number)
    assert loop.calls.take() == "F" * calls
    found = loop.run(as_number=as_number)
    # With the same prompt, any of the warm-up calls could be the first step.
    assert found == (SCHEDULE if prompt == 1 else "FF.F..F..")


@pytest.mark.parametrize("as_number", [False, True])
def test_warm_up_with_guidance_in_two_calls(as_number):
    loop = Loop()
    for _ in range(2):
        loop.call(0, "warm-up", (0, 1), as_number)
    loop.calls.take()
    assert loop.run(prompts=(0, 1), as_number=as_number) == "FFFF..FF....FF...."


@pytest.mark.parametrize("as_number", [False, True])
def test_warm_up_with_the_whole_list(as_number):
    loop = Loop()
    for image in range(3):
        assert loop.run(image=image, as_number=as_number) == SCHEDULE


@pytest.mark.parametrize("as_number", [False, True])
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 8])
def test_loop_that_stops_and_restarts(stop, as_number):
    loop = Loop()
    assert loop.run(0, stop, image=0, as_number=as_number) == SCHEDULE[:stop]
    found = loop.run(image=1, as_number=as_number)
    # The second run could have started within a step of the first.
    assert found == "FF.F..F.."


@pytest.mark.parametrize("as_number", [False, True])
@pytest.mark.parametrize("stop", [2, 3, 4, 5])
def test_image_that_starts_where_another_stopped(stop, as_number):
    """With another prompt, as in two img2img requests of different strength."""
    loop = Loop()
    assert loop.run(0, stop, image=0, prompts=(0,), as_number=as_number) == SCHEDULE[:stop]
    found = loop.run(stop, image=1, prompts=(1,), as_number=as_number)
    assert found[0] == "F"
    assert "X" not in found


@pytest.mark.parametrize("stop", [2, 3, 4, 5])
def test_image_that_starts_at_the_last_step_of_another(stop):
    loop = Loop()
    loop.run(0, stop, image=0, prompts=(0,))
    found = loop.run(stop - 1, image=1, prompts=(1,))
    assert found[0] == "F"
    assert "X" not in found


def test_end_run_separates_images_with_one_prompt():
    loop = Loop()
    loop.run(0, 4, image=0)
    loop.engine.end_run()
    assert loop.run(4, image=1) == "F..F."


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_loop_that_stops_within_a_step(stop):
    loop = Loop()
    loop.run(0, stop, image=0, prompts=(0, 1))
    loop.call(stop, 0, (0,))
    loop.calls.take()
    assert loop.run(image=1, prompts=(0, 1)) == "FFFF..FF....FF...."


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_step_that_raises_and_is_retried(stop):
    loop = Loop()
    loop.run(0, stop)
    handle = loop.pipe.unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        loop.pipe.unet(torch.ones(1, 4, 8, 8), loop.timesteps[stop], encoder_hidden_states=text(0))
    handle.remove()
    found = loop.run(stop)
    assert found[0] == "F"
    assert "X" not in found


@pytest.mark.parametrize("every", [2, 4])
def test_preview_calls_during_a_run(every):
    """A call at the first timestep with another prompt starts a new run."""
    loop = Loop()
    for step in range(STEPS):
        loop.call(step)
        if step % every == 1:
            loop.call(0, "look", (1,))
    assert "X" not in loop.calls.take()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_images_in_turn_over_one_list(order):
    """One call per image and step, each with its own prompt."""
    loop = Loop()
    signs = []
    for step in range(STEPS):
        for image in range(3) if step % 2 else order:
            loop.call(step, image, (image,))
        signs.append(loop.calls.take())
    assert signs == ["FFF" if step % 3 == 0 else "..." for step in range(STEPS)]


def test_images_that_join_and_leave():
    """A server that adds and removes requests at any step."""
    loop = Loop()
    present = ["a", "ab", "ab", "abc", "bc", "bcd", "cd", "cd", "d"]
    prompts = {"a": 0, "b": 1, "c": 2, "d": 3}
    signs = []
    for step, images in enumerate(present):
        for image in images:
            loop.call(step, image, (prompts[image],))
        signs.append(loop.calls.take())
    assert signs == ["F", ".F", "..", "FFF", "..", "..F", "FF", "..", "."]
