"""Generates the images of the page on one thread, one request at a time."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from inspect import signature
from io import BytesIO
from math import isqrt
from queue import Empty, SimpleQueue
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from PIL import Image

from DeepCache.bench.clock import is_out_of_memory
from DeepCache.bench.workload import default_size
from DeepCache.engine.unets import unets_of
from DeepCache.errors import REPORTED_ERRORS
from DeepCache.generation import GeneratedImage, GenerationSettings, OutputFolder, StepProgress, generate
from DeepCache.models.loading import load_pipeline, recommended_guidance
from DeepCache.models.schedulers import set_scheduler
from DeepCache.runtime import device_for

if TYPE_CHECKING:
    from DeepCache.app.server import AppSettings

__all__ = ["QUEUE_SIZE", "STARTING", "Comparison", "JobEvent", "Message", "ModelDefaults", "RenderWorker"]

QUEUE_SIZE = 20
"""Every request that waits occupies a thread of the server."""

MAX_PIXELS = 4
"""Largest image, as a multiple of the pixels of the model's own size: time and memory grow faster than the pixels."""

# Seconds between two events: reporting every step would slow down the run that is measured.
_PAUSE = 0.2


class Message(NamedTuple):
    """The state of a request in words."""

    text: str
    state: Literal["busy", "cancelled", "problem"] = "busy"


@dataclass(frozen=True)
class Comparison:
    """An image generated with DeepCache, the same image without it, and what was measured.

    Args:
        prompt: the prompt.
        name: name of the files to save, without suffix.
        png, original_png: the images with and without DeepCache, as files that contain their settings.
        seconds, original_seconds: time of each pipeline call.
        pattern: one character per step, see `DeepCache.schedule.pattern_of`.
        mac_share: multiply-accumulates of the U-Net as a share of those without DeepCache, if they can be counted.
        bytes_kept: memory of the deep features.
        psnr, ssim: fidelity to the original; SSIM is None for small images.
        truncated: which of "prompt" and "negative prompt" are longer than the model reads.
    """

    prompt: str
    name: str
    png: bytes
    original_png: bytes
    seconds: float
    original_seconds: float
    pattern: str
    mac_share: float | None
    bytes_kept: int
    psnr: float
    ssim: float | None
    truncated: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[Image.Image, Image.Image]:
        """The image with DeepCache and the one without."""
        return Image.open(BytesIO(self.png)), Image.open(BytesIO(self.original_png))


JobEvent = Message | StepProgress | Comparison
_CANCELLED = Message("Cancelled.", "cancelled")
STARTING = Message("Starting …")


class ModelDefaults(NamedTuple):
    """Settings that a model generates with by default; None if the model has none, or was not loaded yet."""

    guidance: float | None = None
    size: tuple[int, int] | None = None
    scheduler: str | None = None


class _CancelledError(Exception):
    pass


class RenderWorker:
    """Generates one image at a time, and keeps the pipeline that it used last.

    Args:
        settings: models, dtype, device, runtime and offloading.

    Example:
        >>> from DeepCache.app import AppSettings
        >>> with RenderWorker(AppSettings(device="cpu")) as worker:
        ...     *_, last = worker.run(GenerationSettings(("a red circle",), steps=6), Event())
        >>> last.pattern
        'F..F..'
    """

    def __init__(self, settings: AppSettings) -> None:
        self.settings = settings
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="render-worker")
        self._lock = Lock()
        self._queue: list[Event] = []
        self._loaded: tuple[str, Any] | None = None
        self._defaults: dict[str, ModelDefaults] = {}

    def __enter__(self) -> RenderWorker:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for stop in self._queue:
                stop.set()
        self._thread.shutdown(cancel_futures=True)

    def load(self, model: str) -> Any:
        """The pipeline of a model; the one loaded before is released first.

        It is loaded on the worker's own thread. PyTorch keeps a pool of CPU threads for each thread that computes, and
        two pools slow each other down.
        """
        return self._thread.submit(self._load, model).result()

    def defaults(self, model: str) -> ModelDefaults:
        """The defaults of a model that was loaded before."""
        return self._defaults.get(model, ModelDefaults())

    def _load(self, model: str) -> Any:
        settings = self.settings
        if model not in settings.models:
            raise ValueError(f"the model must be one of {', '.join(settings.models)}, got {model!r}")
        if self._loaded is None or self._loaded[0] != model:
            # Two models might not fit into the memory of the device.
            self._loaded = None
            device = device_for(settings.runtime, settings.device)
            options: dict[str, Any] = {"dtype": settings.dtype, "device": device, "offload": settings.offload}
            try:
                pipe = load_pipeline(model, progress_bar=False, **options)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                raise MemoryError(f"the device has not enough memory for {model}") from error
            has_size = {"width", "height"} <= signature(pipe.__call__).parameters.keys()
            size = default_size(pipe) if has_size else None
            scheduler = type(pipe.scheduler).__name__
            self._defaults[model] = ModelDefaults(recommended_guidance(model, pipe), size, scheduler)
            self._loaded = model, pipe
        return self._loaded[1]

    def run(self, settings: GenerationSettings, stop: Event) -> Iterator[JobEvent]:
        """Generates an image with and without DeepCache when it is its turn.

        Args:
            settings: a prompt and how to generate its image.
            stop: set it to cancel. It is set when the iterator is closed.

        Returns:
            The state of the request, several times a second. The last is a `Comparison`, or not busy.
        """
        events: SimpleQueue[JobEvent] = SimpleQueue()
        with self._lock:
            job = None
            if len(self._queue) < QUEUE_SIZE:
                self._queue.append(stop)
                job = self._thread.submit(self._work, settings, stop, events)
        if job is None:
            yield Message(f"{QUEUE_SIZE} images are already waiting. Try again later.", "problem")
            return
        event: JobEvent | None = None
        try:
            while event is None or not _is_last(event):
                yield event or self._position(stop)
                event = _latest(events, event)
                # The worker may stay busy: loading a model cannot be interrupted.
                if stop.is_set() and (event is None or not _is_last(event)):
                    event = _CANCELLED
            yield event
        finally:
            stop.set()
            if job.cancel():
                self._leave(stop)

    def _position(self, stop: Event) -> Message:
        with self._lock:
            before = self._queue[: self._queue.index(stop)] if stop in self._queue else []
        # A cancelled request ends within a step.
        count = sum(not each.is_set() for each in before)
        return Message(f"Waiting for {count} other {'image' if count == 1 else 'images'} …") if count else STARTING

    def _leave(self, stop: Event) -> None:
        with self._lock:
            self._queue.remove(stop)

    def _work(self, settings: GenerationSettings, stop: Event, events: SimpleQueue[JobEvent]) -> None:
        """Runs on the worker's own thread."""
        last: JobEvent
        try:
            last = self._compare(settings, stop, events)
        except _CancelledError:
            last = _CANCELLED
        except REPORTED_ERRORS as error:
            last = Message(str(error) or type(error).__name__, "problem")
        except Exception as error:
            if is_out_of_memory(error):
                last = Message("the device has not enough memory for this image", "problem")
            else:
                logging.getLogger(__name__).exception("an image could not be generated")
                last = Message(f"this is a bug, please report it: {type(error).__name__}: {error}", "problem")
        # Before the last event: the next request starts when this one has ended.
        self._leave(stop)
        events.put(last)

    def _compare(self, settings: GenerationSettings, stop: Event, events: SimpleQueue[JobEvent]) -> Comparison:
        def check_cancelled(*_: Any) -> None:
            if stop.is_set():
                raise _CancelledError

        check_cancelled()
        if self._loaded is None or self._loaded[0] != settings.model:
            events.put(Message(f"Loading {settings.model} …"))
        pipe = self._load(settings.model)
        _check_size(settings.size, self.defaults(settings.model).size)
        if self.settings.runtime != "torch":
            from DeepCache.export import use_runtime

            use_runtime(pipe, self.settings.runtime, settings.cache)
        own_scheduler = pipe.scheduler
        handles = [unet.register_forward_pre_hook(check_cancelled) for unet in unets_of(pipe).values()]
        try:
            if settings.scheduler is not None:
                set_scheduler(pipe, settings.scheduler)
            events.put(Message("Warming up …"))
            with tempfile.TemporaryDirectory(prefix="deepcache-app-") as folder:
                (generated,) = generate(pipe, settings, OutputFolder(folder), compare=True, on_step=events.put)
                return _comparison(pipe, settings, generated)
        finally:
            for handle in handles:
                handle.remove()
            pipe.scheduler = own_scheduler


def _comparison(pipe: Any, settings: GenerationSettings, generated: GeneratedImage) -> Comparison:
    file, original, stats = generated.accelerated, generated.original, generated.stats
    assert original is not None
    assert generated.psnr is not None
    texts = {"prompt": generated.prompt, "negative prompt": settings.negative_prompt}
    return Comparison(
        prompt=generated.prompt,
        name=file.path.stem,
        png=file.path.read_bytes(),
        original_png=original.path.read_bytes(),
        seconds=file.seconds,
        original_seconds=original.seconds,
        pattern=stats.pattern,
        mac_share=stats.mac_share,
        bytes_kept=stats.bytes_kept,
        psnr=generated.psnr,
        ssim=generated.ssim,
        truncated=tuple(name for name, text in texts.items() if _is_truncated(pipe, text)),
    )


def _is_truncated(pipe: Any, text: str) -> bool:
    tokenizer = getattr(pipe, "tokenizer", None)
    return tokenizer is not None and len(tokenizer(text).input_ids) > tokenizer.model_max_length


def _check_size(size: tuple[int, int] | None, own: tuple[int, int] | None) -> None:
    """Refuses an image that would keep other visitors waiting."""
    if size is None or own is None:
        return
    most = MAX_PIXELS * own[0] * own[1]
    if size[0] * size[1] > most:
        side = isqrt(most) // 8 * 8
        raise ValueError(
            f"{size[0]}x{size[1]} is too large: an image may have {MAX_PIXELS} times the pixels of the model's own "
            f"{own[0]}x{own[1]}. The largest square is {side}x{side}"
        )


def _is_last(event: JobEvent) -> bool:
    return isinstance(event, Comparison) or (isinstance(event, Message) and event.state != "busy")


def _latest(events: SimpleQueue[JobEvent], latest: JobEvent | None) -> JobEvent | None:
    """The newest event after a pause; events in between are skipped."""
    time.sleep(_PAUSE)
    with suppress(Empty):
        while latest is None or not _is_last(latest):
            latest = events.get_nowait()
    return latest
