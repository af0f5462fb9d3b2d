"""The easel without a page."""

from __future__ import annotations

from threading import Event

import pytest
from PIL import ImageChops

from DeepCache import DeepCacheConfig
from DeepCache.app.drawing_request import DrawingRequest
from DeepCache.app.easel import Comparison, Easel, Failure, Loading, Stopped
from DeepCache.generation import GenerationSettings

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def easel():
    with Easel(("shapes", "sd15-tiny"), device="cpu") as easel:
        yield easel


def request(prompt="a red circle", model="shapes", scheduler=None, **values):
    return DrawingRequest(GenerationSettings((prompt,), model=model, **({"steps": 4} | values)), scheduler)


def last(easel, wanted):
    *_, found = easel.draw(wanted, Event())
    return found


def test_no_model_but_those_offered_is_loaded(easel):
    found = last(easel, request(model="/etc"))
    assert found == Failure("the model must be one of shapes, sd15-tiny, got '/etc'")


def test_the_scheduler_of_one_picture_is_not_that_of_the_next(easel, drawn):
    own = type(easel.load("shapes").scheduler)
    assert isinstance(last(easel, request(scheduler="euler")), Comparison)
    assert type(easel.load("shapes").scheduler) is own
    assert last(easel, request(scheduler="nonsense")).message.startswith("there is no scheduler 'nonsense'")
    found = last(easel, request())
    assert ImageChops.difference(found.drawn.original.image, drawn("a red circle", steps=4)).getbbox() is None


def test_one_model_is_kept_at_a_time(easel):
    first = easel.load("shapes")
    assert easel.load("shapes") is first
    assert easel.load("sd15-tiny") is not first
    assert easel.load("shapes") is not first


def test_what_nobody_waits_for_is_not_drawn(easel):
    """The iterator is left while the picture is drawn, as when a visitor goes away."""
    calls = []
    easel.load("shapes").unet.register_forward_pre_hook(lambda *_: calls.append(1))
    news = easel.draw(request(steps=250), stop := Event())
    next(news)
    news.close()
    assert stop.is_set()
    assert isinstance(last(easel, request()), Comparison)
    assert len(calls) < 250


def test_a_stop_before_its_turn(easel):
    stop = Event()
    stop.set()
    *_, found = easel.draw(request(), stop)
    assert found == Stopped()


def test_cancel_is_answered_while_the_model_is_being_loaded(easel, monkeypatch):
    load, release, stop = easel.load, Event(), Event()

    def slow(model):
        assert release.wait(60)
        return load(model)

    monkeypatch.setattr(easel, "load", slow)
    news = easel.draw(request(), stop)
    while next(news) != Loading("shapes"):
        pass
    stop.set()
    assert list(news)[-1] == Stopped()
    release.set()
    assert isinstance(last(easel, request()), Comparison)


def test_an_error_of_the_program_is_told_and_the_next_picture_drawn(easel, caplog):
    unet = easel.load("shapes").unet

    def fail(*_):
        raise RuntimeError("made up")

    handle = unet.register_forward_pre_hook(fail)
    found = last(easel, request())
    handle.remove()
    assert found == Failure("this is a mistake in the program, please report it: RuntimeError: made up")
    assert "made up" in caplog.text
    assert isinstance(last(easel, request()), Comparison)
    # Nothing is left on the U-Net by either.
    assert not unet._forward_pre_hooks
    assert not unet._forward_hooks


def test_what_was_done_is_told(easel):
    news = list(easel.draw(request(steps=6, cache=DeepCacheConfig(cache_interval=2)), Event()))
    found = news[-1]
    assert found.drawn.stats.pattern == "F.F.F."
    assert [step.full for step in found.steps] == [True, False] * 3
    assert found.png.startswith(b"\x89PNG")
    assert found.original_png.startswith(b"\x89PNG")
    assert not found.cut_off
    assert not found.drawn.drawing.path.exists()
    assert Loading("shapes") in news or len(news) < 4
