"""The render worker without the page."""

from __future__ import annotations

from functools import wraps
from threading import Event, current_thread

import pytest
from PIL import ImageChops

from DeepCache import DeepCacheConfig
from DeepCache.app.comparison_view import comparison_html
from DeepCache.app.explorer import SHIPPED_ABLATION, Explorer
from DeepCache.app.page import build_page
from DeepCache.app.render_worker import QUEUE_SIZE, STARTING, Comparison, Message, ModelDefaults, RenderWorker
from DeepCache.app.server import AppSettings
from DeepCache.generation import GenerationSettings
from DeepCache.models import load_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def worker():
    with RenderWorker(AppSettings(models=("shapes", "sd15-tiny"), device="cpu")) as worker:
        yield worker


CANCELLED = Message("Cancelled.", "cancelled")


def waiting_for(count):
    return Message(f"Waiting for {count} other {'image' if count == 1 else 'images'} …") if count else STARTING


def request(prompt="a red circle", **values):
    return GenerationSettings((prompt,), **({"steps": 4} | values))


def last(worker, settings):
    *_, found = worker.run(settings, Event())
    return found


def equal(image, other):
    return ImageChops.difference(image.convert("RGB"), other.convert("RGB")).getbbox() is None


def test_only_the_offered_models_are_loaded(worker):
    found = last(worker, request(model="/etc"))
    assert found == Message("the model must be one of shapes, sd15-tiny, got '/etc'", "problem")


def test_the_scheduler_of_one_image_is_not_that_of_the_next(worker, generated):
    own = type(worker.load("shapes").scheduler)
    assert isinstance(last(worker, request(scheduler="euler")), Comparison)
    assert type(worker.load("shapes").scheduler) is own
    assert "'nonsense'" in last(worker, request(scheduler="nonsense")).text
    _, original = last(worker, request()).images
    assert equal(original, generated("a red circle", steps=4))


def test_an_offloaded_model_generates_the_same(worker):
    with RenderWorker(AppSettings(device="cpu", offload="group")) as other:
        assert hasattr(other.load("shapes").unet.conv_in, "_diffusers_hook")
        assert equal(last(other, request()).images[0], last(worker, request()).images[0])


def test_nothing_is_computed_on_any_other_thread(worker, monkeypatch):
    """Two threads that compute slow each other down, even in turn."""
    threads = set()

    def load(*arguments, **options):
        threads.add(current_thread())
        return load_pipeline(*arguments, **options)

    monkeypatch.setattr("DeepCache.app.render_worker.load_pipeline", load)
    worker.load("shapes").unet.register_forward_pre_hook(lambda *_: threads.add(current_thread()))
    assert isinstance(last(worker, request()), Comparison)
    (thread,) = threads
    assert thread is not current_thread()


def test_one_model_is_kept_at_a_time_and_its_defaults_are_known_afterwards(worker):
    assert worker.defaults("shapes") == ModelDefaults(None, None, None)
    first = worker.load("shapes")
    assert worker.load("shapes") is first
    assert worker.load("sd15-tiny") is not first
    assert worker.defaults("shapes") == ModelDefaults(2.0, (64, 64), "DDIMScheduler")
    assert worker.defaults("sd15-tiny") == ModelDefaults(7.5, (64, 64), "PNDMScheduler")
    assert worker.load("shapes") is not first


def test_the_form_shows_the_defaults_of_another_model(worker):
    worker.load("shapes")
    page = build_page(worker, Explorer.from_file(SHIPPED_ABLATION))
    (choose,) = [each.fn for each in page.fns.values() if each.name == "on_model"]
    values = {field.label: value for field, value in choose("shapes").items()}
    assert values == {"Guidance scale": 2.0, "Width": 64, "Height": 64}
    # It is not loaded yet. Empty fields are its own values.
    assert set(choose("sd15-tiny").values()) == {None}


@pytest.mark.parametrize(("size", "largest"), [((136, 128), "128x128"), ((64, 264), "128x128"), ((4096, 4096), "128")])
def test_an_image_far_larger_than_the_models_own_is_refused(worker, size, largest):
    message = last(worker, request(size=size)).text
    assert message.startswith(f"{size[0]}x{size[1]} is too large: an image may have 4 times the pixels")
    assert f"the model's own 64x64. The largest square is {largest}" in message


def test_the_largest_image_is_generated(worker):
    assert last(worker, request(size=(256, 64), steps=2)).images[0].size == (256, 64)


def test_guidance_and_negative_prompt_reach_the_pipeline(worker, monkeypatch):
    pipe, calls = worker.load("shapes"), []
    call = type(pipe).__call__

    @wraps(call)
    def noted(self, *arguments, **options):
        calls.append(options)
        return call(self, *arguments, **options)

    monkeypatch.setattr(type(pipe), "__call__", noted)
    found = last(worker, request(guidance=7.5, negative_prompt="a star " * 50, size=(72, 64), steps=2))
    # The warm-up, without DeepCache and with it.
    assert len(calls) == 3
    for options in calls:
        assert options["guidance_scale"] == 7.5
        assert options["negative_prompt"] == "a star " * 50
        assert (options["width"], options["height"]) == (72, 64)
    assert found.truncated == ("negative prompt",)
    assert "The negative prompt is longer than this model reads" in comparison_html(found)


def test_a_request_ends_when_its_iterator_is_closed(worker):
    """As when a visitor leaves the page."""
    begun, calls = Event(), []

    def count(*_):
        calls.append(1)
        begun.set()

    worker.load("shapes").unet.register_forward_pre_hook(count)
    events = worker.run(request(steps=250), stop := Event())
    next(events)
    assert begun.wait(60)
    events.close()
    assert stop.is_set()
    assert isinstance(last(worker, request()), Comparison)
    assert len(calls) < 250


def test_the_queue_is_limited(worker):
    release = Event()
    handle = worker.load("shapes").unet.register_forward_pre_hook(lambda *_: release.wait(60))
    waiting = [worker.run(request(), Event()) for _ in range(QUEUE_SIZE)]
    for number, events in enumerate(waiting):
        assert next(events) == waiting_for(number)
    assert last(worker, request()) == Message("20 images are already waiting. Try again later.", "problem")
    for events in waiting[1:]:
        events.close()
    # The closed requests make room while the first still runs.
    assert next(worker.run(request(), Event())) == waiting_for(1)
    release.set()
    handle.remove()
    assert isinstance(list(waiting[0])[-1], Comparison)


def test_a_request_can_be_cancelled_before_its_turn(worker):
    stop = Event()
    stop.set()
    *_, found = worker.run(request(), stop)
    assert found == CANCELLED


def test_a_request_can_be_cancelled_while_the_model_is_loaded(worker, monkeypatch):
    load, release, stop = load_pipeline, Event(), Event()

    def slow(*arguments, **options):
        assert release.wait(60)
        return load(*arguments, **options)

    monkeypatch.setattr("DeepCache.app.render_worker.load_pipeline", slow)
    events = worker.run(request(), stop)
    while next(events) != Message("Loading shapes …"):
        pass
    stop.set()
    assert list(events)[-1] == CANCELLED
    release.set()
    assert isinstance(last(worker, request()), Comparison)


def test_a_bug_is_reported_and_the_next_image_is_generated(worker, caplog):
    unet = worker.load("shapes").unet

    def fail(*_):
        raise RuntimeError("simulated")

    handle = unet.register_forward_pre_hook(fail)
    found = last(worker, request())
    handle.remove()
    assert found == Message("this is a bug, please report it: RuntimeError: simulated", "problem")
    assert "simulated" in caplog.text
    assert isinstance(last(worker, request()), Comparison)
    # Nothing is left on the U-Net by either.
    assert not unet._forward_pre_hooks
    assert not unet._forward_hooks


def test_an_image_of_nan_is_an_error_that_suggests_fixes(worker):
    found = last(worker, request(guidance=1e38))
    assert found.state == "problem"
    assert "NaN or infinite values" in found.text
    assert "Use float32 or bfloat16, run the VAE in float32, lower the guidance scale" in found.text


def test_too_little_memory_for_a_model_is_reported(worker, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr("DeepCache.app.render_worker.load_pipeline", fail)
    assert last(worker, request()) == Message("the device has not enough memory for shapes", "problem")


def test_a_comparison_contains_what_was_measured(worker):
    found = last(worker, request(steps=6, cache=DeepCacheConfig(cache_interval=2)))
    assert found.pattern == "F.F.F."
    assert found.png.startswith(b"\x89PNG")
    assert found.original_png.startswith(b"\x89PNG")
    assert found.seconds > 0
    assert found.original_seconds > 0
    assert 0 < found.mac_share < 1
    assert not found.truncated
