"""Shows how far a command is: the steps of images as they are taken, or a bar of work with the time left."""

from __future__ import annotations

import time
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from DeepCache.cli.interruption import keep_on_interrupt

if TYPE_CHECKING:
    from DeepCache.batch import BatchProgress
    from DeepCache.generation import StepProgress
    from DeepCache.progress import WorkProgress

__all__ = ["BatchDisplay", "StepDisplay", "WorkDisplay", "show_pattern"]

_ROOM_FOR_OTHER_COLUMNS = 44
_LONGEST_PLAIN_PATTERN = 60
_LINE_EVERY_SECONDS = 30.0
_BARS = 6  # the latest ones; more would push each other off the screen


def show_pattern(pattern: str) -> str:
    """A pattern as it is shown to people: `F··F··`."""
    return pattern.replace(".", "·")


_Shown = TypeVar("_Shown", bound="_Display")


class _Display:
    """What shows itself for the length of a context."""

    _progress: Progress

    def __enter__(self: _Shown) -> _Shown:
        keep_on_interrupt()
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class StepDisplay(_Display):
    """A bar of steps on a terminal; elsewhere one line a finished image.

    Args:
        console: where to show it, as a rule stderr.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        width = max(10, console.width - _ROOM_FOR_OTHER_COLUMNS)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            _PatternColumn(width),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._run: tuple[int, bool] | None = None
        self._lines: list[str] = []
        self._tasks: list[TaskID] = []

    def __call__(self, done: StepProgress) -> None:
        """Shows one more step."""
        name = "DeepCache" if done.accelerated else "original"
        label = f"image {done.image} of {done.images}, {name}"
        if self._console.is_terminal:
            if self._run != (done.image, done.accelerated):
                self._run = (done.image, done.accelerated)
                self._tasks.append(self._progress.add_task(label, total=done.steps))
                if len(self._tasks) > _BARS:
                    self._progress.remove_task(self._tasks.pop(0))
            self._progress.update(self._tasks[-1], completed=done.step, pattern=done.pattern)
        elif done.step == done.steps:
            pattern = show_pattern(done.pattern)
            if len(pattern) > _LONGEST_PLAIN_PATTERN:
                pattern = pattern[:_LONGEST_PLAIN_PATTERN] + "…"
            self._lines.append(f"{label}: {done.steps} steps {pattern}")

    def note(self, text: str) -> None:
        """Reports what is being done before or between steps."""
        self._console.print(f"{text} …", soft_wrap=True, highlight=False, markup=False)

    def finish_image(self) -> None:
        """Reports an image as finished, once it is written."""
        for line in self._lines:
            self._console.print(line, soft_wrap=True, highlight=False)
        self._lines = []


class WorkDisplay(_Display):
    """A bar with the time left on a terminal; elsewhere one line a stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=600,
        )
        self._task = self._progress.add_task("", total=None)
        self._stage = ""

    def __call__(self, now: WorkProgress) -> None:
        self._progress.update(self._task, description=now.stage, completed=now.done, total=now.total)
        if not self._console.is_terminal and now.stage != self._stage:
            self._console.print(f"{now.stage} …", soft_wrap=True, highlight=False, markup=False)
        self._stage = now.stage


class BatchDisplay(_Display):
    """A bar of pictures with how many a second, done, failed, and the time left; elsewhere a line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[more]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None, more="")
        self._stage = ""
        self._told_at = 0.0

    def __call__(self, now: BatchProgress) -> None:
        finished = now.done + now.failed
        more = _more(now)
        self._progress.update(self._task, description=now.stage, completed=finished, total=now.rows or None, more=more)
        if self._console.is_terminal:
            return
        new = now.stage != self._stage
        if new or (now.stage == "drawing" and time.monotonic() - self._told_at >= _LINE_EVERY_SECONDS):
            self._told_at = time.monotonic()
            line = f"{now.stage} …" if not more else f"{now.stage}: {finished} of {now.rows}, {more}"
            self._console.print(line, soft_wrap=True, highlight=False, markup=False)
        self._stage = now.stage


def _more(now: BatchProgress) -> str:
    if not now.drawn:
        return ""
    parts = [f"{now.per_second:.2f} a second", f"{now.done} done", f"{now.failed} failed"]
    if now.stage == "drawing" and now.seconds_left is not None:
        parts.append(f"{timedelta(seconds=round(now.seconds_left))} left")
    return ", ".join(parts)


class _PatternColumn(ProgressColumn):
    """The steps themselves as the bar: full, shallow and skipped ones done, and those to come."""

    _SHOWN: ClassVar[dict[str, tuple[str, str]]] = {"F": ("F", "bold green"), "-": ("-", "yellow")}

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width

    def render(self, task: Task) -> Text:
        pattern: str = task.fields.get("pattern", "")
        coming = max(0, int(task.total or 0) - len(pattern))
        text = Text(no_wrap=True)
        for character in pattern:
            text.append(*self._SHOWN.get(character, ("·", "cyan")))
        text.append("─" * coming, "bright_black")
        # Of a run that is longer than the line, the part around the present step.
        first = max(0, min(len(pattern) - self._width * 3 // 4, len(text) - self._width))
        return text[first : first + self._width]
