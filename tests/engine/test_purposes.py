"""A call continues the call of the step before with the same conditioning."""

from __future__ import annotations

import pytest
import torch

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.engine.store import Store
from tests.engine.no_transfers import NoTransfers
from tests.engine.slots import kept_slots
from tests.engine.tiny_pipeline import tiny_pipeline

TEXTS = torch.randn(3, 1, 3, 8, generator=torch.Generator().manual_seed(0))


class Watched:
    """A U-Net that is called with texts by their number; `step` returns which calls ran its mid block."""

    def __init__(self, steps=8, interval=4, **settings):
        self.pipe = tiny_pipeline()
        self.engine = apply_deepcache(self.pipe, DeepCacheConfig(interval, forecast="none"), **settings)
        self.pipe.scheduler.set_timesteps(steps)
        self._ran = False
        self.pipe.unet.mid_block.register_forward_hook(self._note)

    def _note(self, *_):
        self._ran = True

    @torch.no_grad()
    def step(self, number, *texts):
        signs = ""
        for text in texts:
            self._ran = False
            text = TEXTS[text] if isinstance(text, int) else text
            timestep = self.pipe.scheduler.timesteps[number]
            self.pipe.unet(torch.ones(1, 4, 8, 8), timestep, encoder_hidden_states=text)
            signs += "F" if self._ran else "."
        return signs


@pytest.mark.parametrize(
    ("calls", "signs"),
    [
        (["012", "012", "02", "02"], ["FFF", "...", "..", ".."]),
        (["01", "01", "02", "02"], ["FF", "..", ".F", ".."]),
        (["01", "01", "1", "1"], ["FF", "..", ".", "."]),
        (["0", "0", "10", "10"], ["F", ".", "F.", ".."]),
        (["01", "10", "01", "10"], ["FF", "..", "..", ".."]),
        (["0", "1", "0", "1"], ["F", "F", "F", "F"]),
    ],
    ids=["one dropped", "one replaced", "first dropped", "one begins", "swapped", "another each step"],
)
@pytest.mark.parametrize("kind", ["held", "created again", "overwritten"])
def test_a_call_continues_the_one_with_its_conditioning(calls, signs, kind):
    watched, buffer = Watched(), torch.empty(1, 3, 8)

    def text(number):
        if kind == "overwritten":
            return buffer.copy_(TEXTS[int(number)])
        return TEXTS[int(number)].clone() if kind == "created again" else int(number)

    for step, (numbers, expected) in enumerate(zip(calls, signs, strict=True)):
        assert "".join(watched.step(step, text(number)) for number in numbers) == expected


def test_views_with_one_prompt_are_known_by_their_order_after_two_equal_steps():
    watched = Watched()
    assert [watched.step(step, 0, 0, 0) for step in range(4)] == ["FFF", "FFF", "...", "..."]
    assert watched.engine.stats.reasons == ((1, "not known yet which call of the step before it continues"),)


def test_warm_up_calls_do_not_affect_the_loop():
    watched = Watched()
    assert [watched.step(0, 0, 0), watched.step(0, 0)] == ["FF", "F"]
    assert [watched.step(step, 0) for step in range(1, 5)] == ["F", ".", ".", "F"]


def test_named_calls_keep_their_order():
    watched = Watched(slot_key=lambda args, kwargs: "view")
    assert [watched.step(step, 0, 0, 0) for step in range(4)] == ["FFF", "...", "...", "..."]


def test_held_conditioning_is_recognised_without_a_transfer(monkeypatch):
    watched = Watched()
    watched.step(0, 0, 1)
    with NoTransfers(monkeypatch):
        assert watched.step(1, 1, 0) == ".."


def test_more_calls_at_one_step_than_any_pipeline_makes_are_not_stored():
    watched = Watched()
    for _ in range(3):
        watched.step(0, *[TEXTS[0] + number for number in range(100)])
        assert len(kept_slots(watched.engine)) <= 128
    assert kept_slots(watched.engine) == []
    assert watched.step(1, 0) == "F"
    assert watched.step(2, 0) == "."


def test_equal_conditioning_has_one_purpose_and_its_address_is_held():
    store = Store()
    store.begin_step()
    first = store.purpose(None, TEXTS[0].clone())
    # If the first was freed, this would get its address.
    assert store.purpose(None, TEXTS[1].clone()) is not first
    assert store.purpose(None, TEXTS[0].clone()) is first
    assert store.purpose(None, TEXTS[0].to(torch.float64)) is not first
