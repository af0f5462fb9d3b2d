"""The one easel of the page: it holds the pipeline and draws for one visitor after the other."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event, Lock
from typing import Any

from DeepCache.app.drawing_request import DrawingRequest
from DeepCache.app.model_defaults import ModelDefaults
from DeepCache.bench.clock import is_out_of_memory
from DeepCache.errors import REPORTED_ERRORS
from DeepCache.generation import GeneratedImage, OutputFolder, StepProgress, generate
from DeepCache.models.loading import load_pipeline
from DeepCache.models.schedulers import set_scheduler
from DeepCache.runtime import device_for

__all__ = ["LONGEST_LINE", "Comparison", "Easel", "Failure", "Loading", "News", "Stopped", "Waiting", "WarmingUp"]

LONGEST_LINE = 20
"""How many pictures may wait: everybody who waits takes a little of what the page is answered with."""

# Seconds from one news to the next: every step told at once would take time from the drawing that is measured.
_PAUSE = 0.2


@dataclass(frozen=True)
class Waiting:
    """Others are drawn for first.

    Args:
        before: how many.
    """

    before: int


@dataclass(frozen=True)
class Loading:
    """The pipeline is loaded.

    Args:
        model: its name.
    """

    model: str


@dataclass(frozen=True)
class WarmingUp:
    """The short run before the clock starts."""


@dataclass(frozen=True)
class Comparison:
    """A picture drawn with and without DeepCache.

    Args:
        drawn: the pictures, their times and what the trajectory did. The files that it names are gone.
        png: the picture with DeepCache, as a file that holds its settings.
        original_png: the same without DeepCache.
        cut_off: of prompt and negative prompt those of which the model read only the beginning.
    """

    drawn: GeneratedImage
    png: bytes
    original_png: bytes
    cut_off: tuple[str, ...]


@dataclass(frozen=True)
class Stopped:
    """The visitor cancelled."""


@dataclass(frozen=True)
class Failure:
    """It could not be drawn.

    Args:
        message: why, in words.
    """

    message: str


News = Waiting | Loading | WarmingUp | StepProgress | Comparison | Stopped | Failure
"""What a visitor hears."""

_LAST = (Comparison, Stopped, Failure)


class _Cancelled(Exception):
    pass


class Easel:
    """Draws one picture after the other, and keeps the pipeline that it drew with last.

    Args:
        models: the models that may be drawn with, as `load_pipeline` takes them.
        dtype: as `load_pipeline` takes it.
        device: as `load_pipeline` takes it.
        runtime: what the U-Net runs in, see `DeepCache.export.use_runtime`.
        offload: as `load_pipeline` takes it.

    Example:
        >>> from DeepCache.app.drawing_request import DrawingRequest
        >>> from DeepCache.generation import GenerationSettings
        >>> with Easel(("shapes",), device="cpu") as easel:
        ...     *_, last = easel.draw(DrawingRequest(GenerationSettings(("a red circle",), steps=6)), Event())
        >>> last.drawn.stats.pattern
        'F..F..'
    """

    def __init__(
        self,
        models: tuple[str, ...],
        *,
        dtype: str = "auto",
        device: str = "auto",
        runtime: str = "torch",
        offload: str | None = None,
    ) -> None:
        self._models = models
        self._dtype = dtype
        self._device = device_for(runtime, device)
        self._runtime = runtime
        self._offload = offload
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="easel")
        self._lock = Lock()
        self._line: list[Event] = []
        self._loaded: tuple[str, Any] | None = None
        self._defaults: dict[str, ModelDefaults] = {}

    def __enter__(self) -> Easel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what is being drawn and what waits."""
        with self._lock:
            for stop in self._line:
                stop.set()
        self._worker.shutdown(cancel_futures=True)

    def load(self, model: str) -> Any:
        """The pipeline of a model; one that was loaded before is let go first.

        It is loaded on the easel's own thread. Were it another that computes first, PyTorch would keep two sets of
        threads on the CPU, more than there are cores, and each would sleep between two layers.

        Raises:
            ValueError: the model is none of those that may be drawn with.
            OSError: it cannot be loaded.
            TypeError: it has no U-Net that DeepCache can work on.
            MemoryError: the device has not enough memory for it.
        """
        return self._worker.submit(self._load, model).result()

    def defaults(self, model: str) -> ModelDefaults:
        """What the model generates with where nothing else is asked for, as far as it has been loaded before.

        Args:
            model: one of those that may be drawn with.

        Returns:
            The values; each is None where the model was never loaded.
        """
        return self._defaults.get(model, ModelDefaults())

    def _load(self, model: str) -> Any:
        if model not in self._models:
            raise ValueError(f"the model must be one of {', '.join(self._models)}, got {model!r}")
        if not self._has(model):
            # Two of them might not fit into the memory of the device.
            self._loaded = None
            try:
                pipe = load_pipeline(model, dtype=self._dtype, device=self._device, offload=self._offload)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                raise MemoryError(f"the device has not enough memory for {model}") from error
            pipe.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
            self._defaults[model] = ModelDefaults.of(model, pipe)
            self._loaded = model, pipe
        assert self._loaded is not None
        return self._loaded[1]

    def _has(self, model: str) -> bool:
        return self._loaded is not None and self._loaded[0] == model

    def draw(self, request: DrawingRequest, stop: Event) -> Iterator[News]:
        """Draws a picture with and without DeepCache when it is its turn, and tells how far it is.

        Args:
            request: what to draw.
            stop: set it to cancel, whether it is drawn already or waits. It is set when the iterator is left.

        Returns:
            The news, several times a second; the last is a `Comparison`, `Stopped` or `Failure`. Only the latest of
            those that came in between is told.
        """
        news: SimpleQueue[News] = SimpleQueue()
        with self._lock:
            future = None
            if len(self._line) < LONGEST_LINE:
                self._line.append(stop)
                future = self._worker.submit(self._work, request, stop, news)
        if future is None:
            yield Failure(f"{LONGEST_LINE} pictures wait already: try again in a while")
            return
        latest: News = Waiting(self._before(stop))
        try:
            while not isinstance(latest, _LAST):
                if isinstance(latest, Waiting):
                    latest = Waiting(self._before(stop))
                yield latest
                latest = _latest(news, latest)
                # The easel may be busy for a while yet: a model that is being loaded is loaded to its end.
                if stop.is_set() and not isinstance(latest, _LAST):
                    latest = Stopped()
            yield latest
        finally:
            stop.set()
            if future.cancel():
                self._leave(stop)

    def _before(self, stop: Event) -> int:
        with self._lock:
            before = self._line[: self._line.index(stop)] if stop in self._line else []
        # Who has cancelled is not waited for any longer than a step takes.
        return sum(not each.is_set() for each in before)

    def _leave(self, stop: Event) -> None:
        with self._lock:
            self._line.remove(stop)

    def _work(self, request: DrawingRequest, stop: Event, news: SimpleQueue[News]) -> None:
        """On the easel's own thread."""
        try:
            last: News = self._compare(request, stop, news)
        except _Cancelled:
            last = Stopped()
        except REPORTED_ERRORS as error:
            last = Failure(str(error) or type(error).__name__)
        except Exception as error:
            if is_out_of_memory(error):
                last = Failure("the device has not enough memory for this picture")
            else:
                logging.getLogger(__name__).exception("a picture could not be drawn")
                last = Failure(f"this is a mistake in the program, please report it: {type(error).__name__}: {error}")
        # Who comes next is told so before this one hears the end.
        self._leave(stop)
        news.put(last)

    def _compare(self, request: DrawingRequest, stop: Event, news: SimpleQueue[News]) -> Comparison:
        from DeepCache.engine.unets import unets_of

        if stop.is_set():
            raise _Cancelled
        if not self._has(request.settings.model):
            news.put(Loading(request.settings.model))
        settings = request.settings
        pipe = self._load(settings.model)
        self.defaults(settings.model).check_size(settings.size)
        own_scheduler = pipe.scheduler
        if self._runtime != "torch":
            from DeepCache.export import use_runtime

            use_runtime(pipe, self._runtime, settings.cache)

        def stop_where_asked(*_: Any) -> None:
            if stop.is_set():
                raise _Cancelled

        handles = [unet.register_forward_pre_hook(stop_where_asked) for unet in unets_of(pipe).values()]
        try:
            if request.scheduler is not None:
                set_scheduler(pipe, request.scheduler)
            news.put(WarmingUp())
            with tempfile.TemporaryDirectory(prefix="deepcache-app-") as folder:
                output = OutputFolder(folder)
                (drawn,) = generate(pipe, settings, output, compare=True, on_step=news.put)
                assert drawn.original is not None
                png, original_png = drawn.drawing.path.read_bytes(), drawn.original.path.read_bytes()
            texts = {"prompt": drawn.prompt, "negative prompt": settings.negative_prompt}
            cut_off = tuple(name for name, text in texts.items() if _is_cut_off(pipe, text))
            return Comparison(drawn, png, original_png, cut_off)
        finally:
            for handle in handles:
                handle.remove()
            pipe.scheduler = own_scheduler


def _is_cut_off(pipe: Any, prompt: str) -> bool:
    tokenizer = getattr(pipe, "tokenizer", None)
    return tokenizer is not None and len(tokenizer(prompt).input_ids) > tokenizer.model_max_length


def _latest(news: SimpleQueue[News], latest: News) -> News:
    """The newest of what has come in after a pause; what was told last where nothing has."""
    time.sleep(_PAUSE)
    with suppress(Empty):
        while not isinstance(latest, _LAST):
            latest = news.get_nowait()
    return latest
