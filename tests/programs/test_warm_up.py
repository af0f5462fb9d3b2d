"""Calls before the loop, loops that stop early, and images one after the other over the same list of timesteps."""

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
        """The signs of the steps from one to another."""
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
def test_calls_to_warm_up_leave_nothing_to_the_image(as_number, calls, prompt):
    loop = Loop()
    for _ in range(calls):
        loop.call(0, "warm-up", (prompt,), as_number)
    assert loop.calls.take() == "F" * calls
    found = loop.run(as_number=as_number)
    # With its own prompt the first of several calls could go on as well as the last.
    assert found == (SCHEDULE if prompt == 1 else "FF.F..F..")


@pytest.mark.parametrize("as_number", [False, True])
def test_calls_to_warm_up_with_guidance_in_two_calls(as_number):
    loop = Loop()
    for _ in range(2):
        loop.call(0, "warm-up", (0, 1), as_number)
    loop.calls.take()
    assert loop.run(prompts=(0, 1), as_number=as_number) == "FFFF..FF....FF...."


@pytest.mark.parametrize("as_number", [False, True])
def test_a_warm_up_over_the_whole_list(as_number):
    loop = Loop()
    for image in range(3):
        assert loop.run(image=image, as_number=as_number) == SCHEDULE


@pytest.mark.parametrize("as_number", [False, True])
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 8])
def test_a_loop_that_stops_and_begins_again(stop, as_number):
    loop = Loop()
    assert loop.run(0, stop, image=0, as_number=as_number) == SCHEDULE[:stop]
    found = loop.run(image=1, as_number=as_number)
    # It could have begun within a step of the first, of which the calls are not known yet.
    assert found == "FF.F..F.."


@pytest.mark.parametrize("as_number", [False, True])
@pytest.mark.parametrize("stop", [2, 3, 4, 5])
def test_another_image_that_begins_where_the_first_stopped(stop, as_number):
    """With a prompt of its own, as two img2img requests of a different strength over one list."""
    loop = Loop()
    assert loop.run(0, stop, image=0, prompts=(0,), as_number=as_number) == SCHEDULE[:stop]
    found = loop.run(stop, image=1, prompts=(1,), as_number=as_number)
    assert found[0] == "F"
    assert "X" not in found


@pytest.mark.parametrize("stop", [2, 3, 4, 5])
def test_another_image_that_begins_at_the_last_step_of_the_first(stop):
    loop = Loop()
    loop.run(0, stop, image=0, prompts=(0,))
    found = loop.run(stop - 1, image=1, prompts=(1,))
    assert found[0] == "F"
    assert "X" not in found


def test_with_the_same_prompt_it_takes_a_word():
    loop = Loop()
    loop.run(0, 4, image=0)
    loop.engine.end_run()
    assert loop.run(4, image=1) == "F..F."


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_loop_that_stops_between_two_calls_of_a_step(stop):
    loop = Loop()
    loop.run(0, stop, image=0, prompts=(0, 1))
    loop.call(stop, 0, (0,))
    loop.calls.take()
    assert loop.run(image=1, prompts=(0, 1)) == "FFFF..FF....FF...."


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_step_that_raises_and_is_tried_again(stop):
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
def test_a_look_at_an_image_from_time_to_time(every):
    """A call at the first timestep again, with another prompt, after some steps: a new run, and the old one is gone."""
    loop = Loop()
    for step in range(STEPS):
        loop.call(step)
        if step % every == 1:
            loop.call(0, "look", (1,))
    assert "X" not in loop.calls.take()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_images_in_turn_over_one_list(order):
    """A call for each image at each step, each with a prompt of its own."""
    loop = Loop()
    signs = []
    for step in range(STEPS):
        for image in range(3) if step % 2 else order:
            loop.call(step, image, (image,))
        signs.append(loop.calls.take())
    assert signs == ["FFF" if step % 3 == 0 else "..." for step in range(STEPS)]


def test_images_that_join_and_leave():
    """A server that takes a request in at any step of the list and lets go of those that are done."""
    loop = Loop()
    present = ["a", "ab", "ab", "abc", "bc", "bcd", "cd", "cd", "d"]
    prompts = {"a": 0, "b": 1, "c": 2, "d": 3}
    signs = []
    for step, images in enumerate(present):
        for image in images:
            loop.call(step, image, (prompts[image],))
        signs.append(loop.calls.take())
    assert signs == ["F", ".F", "..", "FFF", "..", "..F", "FF", "..", "."]
