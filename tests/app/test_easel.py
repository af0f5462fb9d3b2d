"""The easel without a page."""

from __future__ import annotations

from functools import wraps
from threading import Event, current_thread

import pytest
from PIL import ImageChops

from DeepCache import DeepCacheConfig
from DeepCache.app.comparison_view import comparison_html
from DeepCache.app.drawing_request import DrawingRequest
from DeepCache.app.easel import LONGEST_LINE, Comparison, Easel, Failure, Loading, Stopped, Waiting
from DeepCache.app.explorer import SHIPPED_ABLATION, Explorer
from DeepCache.app.model_defaults import ModelDefaults
from DeepCache.app.page import build_page
from DeepCache.generation import GenerationSettings
from DeepCache.models import load_pipeline

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


def test_an_offloaded_model_draws_the_same(easel):
    with Easel(("shapes",), device="cpu", offload="group") as other:
        assert hasattr(other.load("shapes").unet.conv_in, "_diffusers_hook")
        found, expected = (last(each, request()).drawn.drawing.image for each in (other, easel))
    assert ImageChops.difference(found, expected).getbbox() is None


def test_nothing_is_computed_on_any_other_thread(easel, monkeypatch):
    """Two threads that compute slow each other down, one after the other too."""
    threads = set()

    def load(*arguments, **options):
        threads.add(current_thread())
        return load_pipeline(*arguments, **options)

    monkeypatch.setattr("DeepCache.app.easel.load_pipeline", load)
    easel.load("shapes").unet.register_forward_pre_hook(lambda *_: threads.add(current_thread()))
    assert isinstance(last(easel, request()), Comparison)
    (thread,) = threads
    assert thread is not current_thread()


def test_one_model_is_kept_at_a_time(easel):
    first = easel.load("shapes")
    assert easel.load("shapes") is first
    assert easel.load("sd15-tiny") is not first
    assert easel.load("shapes") is not first


def test_the_values_of_a_model_are_known_once_it_was_loaded(easel):
    assert easel.defaults("shapes") == ModelDefaults(None, None)
    easel.load("shapes")
    easel.load("sd15-tiny")
    assert easel.defaults("shapes") == ModelDefaults(2.0, (64, 64), "DDIMScheduler")
    assert easel.defaults("sd15-tiny") == ModelDefaults(7.5, (64, 64), "PNDMScheduler")


def test_the_form_takes_the_values_of_another_model(easel):
    easel.load("shapes")
    page = build_page(easel, Explorer.from_file(SHIPPED_ABLATION), ("shapes", "sd15-tiny"))
    (choose,) = [each.fn for each in page.fns.values() if each.name == "on_model"]
    assert {field.label: value for field, value in choose("shapes").items()} == {
        "Guidance scale": 2.0,
        "Width": 64,
        "Height": 64,
    }
    # It is not loaded yet, and generates with its own values where the fields are empty.
    assert set(choose("sd15-tiny").values()) == {None}


@pytest.mark.parametrize(("size", "largest"), [((136, 128), "128x128"), ((64, 264), "128x128"), ((4096, 4096), "128")])
def test_an_image_far_larger_than_the_models_own_is_refused(easel, size, largest):
    message = last(easel, request(size=size)).message
    assert message.startswith(f"{size[0]}x{size[1]} is too large here: an image may have 4 times the pixels")
    assert f"the model's own 64x64, so that the largest square is {largest}" in message


def test_the_largest_image_is_generated(easel):
    found = last(easel, request(size=(256, 64), steps=2))
    assert found.drawn.drawing.image.size == (256, 64)


def test_guidance_and_negative_prompt_reach_the_pipeline(easel, monkeypatch):
    pipe, calls = easel.load("shapes"), []
    call = type(pipe).__call__

    @wraps(call)
    def noted(self, *arguments, **options):
        calls.append(options)
        return call(self, *arguments, **options)

    monkeypatch.setattr(type(pipe), "__call__", noted)
    found = last(easel, request(guidance=7.5, negative_prompt="a star " * 50, size=(72, 64), steps=2))
    # The run to warm up, without DeepCache and with it.
    assert len(calls) == 3
    for options in calls:
        assert options["guidance_scale"] == 7.5
        assert options["negative_prompt"] == "a star " * 50
        assert (options["width"], options["height"]) == (72, 64)
    assert found.cut_off == ("negative prompt",)
    assert "The negative prompt is longer than this model reads" in comparison_html(found)


def test_what_nobody_waits_for_is_not_drawn(easel):
    """The iterator is left while the picture is drawn, as when a visitor goes away."""
    begun, calls = Event(), []

    def count(*_):
        calls.append(1)
        begun.set()

    easel.load("shapes").unet.register_forward_pre_hook(count)
    news = easel.draw(request(steps=250), stop := Event())
    next(news)
    assert begun.wait(60)
    news.close()
    assert stop.is_set()
    assert isinstance(last(easel, request()), Comparison)
    assert len(calls) < 250


def test_no_more_than_so_many_wait(easel):
    release = Event()
    handle = easel.load("shapes").unet.register_forward_pre_hook(lambda *_: release.wait(60))
    waiting = [easel.draw(request(), Event()) for _ in range(LONGEST_LINE)]
    for number, news in enumerate(waiting):
        assert next(news) == Waiting(number)
    assert last(easel, request()) == Failure("20 pictures wait already: try again in a while")
    for news in waiting[1:]:
        news.close()
    # Those who left make room, though the first is still drawn.
    assert next(easel.draw(request(), Event())) == Waiting(1)
    release.set()
    handle.remove()
    assert isinstance(list(waiting[0])[-1], Comparison)


def test_a_stop_before_its_turn(easel):
    stop = Event()
    stop.set()
    *_, found = easel.draw(request(), stop)
    assert found == Stopped()


def test_cancel_is_answered_while_the_model_is_being_loaded(easel, monkeypatch):
    load, release, stop = easel._load, Event(), Event()

    def slow(model):
        assert release.wait(60)
        return load(model)

    monkeypatch.setattr(easel, "_load", slow)
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


def test_an_image_of_nan_is_an_error_with_the_usual_fixes(easel):
    found = last(easel, request(guidance=1e38))
    assert isinstance(found, Failure)
    assert "NaN or infinite values" in found.message
    assert "Use float32 or bfloat16, run the VAE in float32, lower the guidance scale" in found.message


def test_too_little_memory_for_a_model_is_told(easel, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr("DeepCache.app.easel.load_pipeline", fail)
    assert last(easel, request()) == Failure("the device has not enough memory for shapes")


def test_what_was_done_is_told(easel):
    found = last(easel, request(steps=6, cache=DeepCacheConfig(cache_interval=2)))
    assert found.drawn.stats.pattern == "F.F.F."
    assert found.png.startswith(b"\x89PNG")
    assert found.original_png.startswith(b"\x89PNG")
    assert not found.cut_off
    assert not found.drawn.drawing.path.exists()
