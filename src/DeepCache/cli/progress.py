"""Shows progress on stderr: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich import progress as bars
from rich.console import Console
from rich.text import Text

from DeepCache.cli.console import note
from DeepCache.cli.interruption import INTERRUPTED, keep_on_interrupt, stopped

if TYPE_CHECKING:
    from DeepCache.batch import BatchProgress
    from DeepCache.generation import StepProgress
    from DeepCache.progress import WorkProgress

_DESCRIPTION = bars.TextColumn("{task.description}", markup=False)
_ROOM_FOR_OTHER_COLUMNS = 44
_LONGEST_PLAIN_PATTERN = 60
_LINE_EVERY_SECONDS = 30.0
_MOST_BARS = 6
_GENERATING = "generating"
_STEPS = {"F": ("F", "bold green"), "-": ("-", "yellow")}


def show_pattern(pattern: str) -> str:
    """A pattern in the way it is printed: `F··F··`."""
    return pattern.replace(".", "·")


class _Display(bars.Progress):
    def __init__(self, *columns: bars.ProgressColumn, **options: Any) -> None:
        console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        super().__init__(_DESCRIPTION, *columns, console=console, disable=not console.is_terminal, **options)
        self._stage = ""

    def start(self) -> None:
        keep_on_interrupt()
        super().start()

    def note(self, text: str) -> None:
        """Prints a line above the bars."""
        self.console.print(text, soft_wrap=True)


class StepDisplay(_Display):
    """A bar of steps per image; elsewhere a line per finished image."""

    def __init__(self) -> None:
        super().__init__(_PatternColumn(), bars.MofNCompleteColumn(), bars.TimeElapsedColumn())
        self._run: tuple[int, bool] | None = None
        self._lines: list[str] = []
        self._bars: list[bars.TaskID] = []

    def __call__(self, done: StepProgress) -> None:
        name = "DeepCache" if done.accelerated else "original"
        label = f"image {done.image} of {done.images}, {name}"
        if self.console.is_terminal:
            if self._run != (done.image, done.accelerated):
                self._run = (done.image, done.accelerated)
                self._bars.append(self.add_task(label, total=done.steps))
                if len(self._bars) > _MOST_BARS:
                    self.remove_task(self._bars.pop(0))
            self.update(self._bars[-1], completed=done.step, pattern=done.pattern)
        elif done.step == done.steps:
            pattern = show_pattern(done.pattern)
            if len(pattern) > _LONGEST_PLAIN_PATTERN:
                pattern = pattern[:_LONGEST_PLAIN_PATTERN] + "…"
            self._lines.append(f"{label}: {done.steps} steps {pattern}")

    def finish_image(self) -> None:
        """Reports an image once it is written."""
        for line in self._lines:
            self.note(line)
        self._lines = []


class WorkDisplay(_Display):
    """A bar with the time left; elsewhere a line per stage."""

    def __init__(self) -> None:
        columns = (bars.BarColumn(), bars.TaskProgressColumn(), bars.TimeElapsedColumn(), bars.TimeRemainingColumn())
        super().__init__(*columns, speed_estimate_period=600)
        self._bar = self.add_task("", total=None)

    def __call__(self, now: WorkProgress) -> None:
        self.update(self._bar, description=now.stage, completed=now.done, total=now.total)
        if not self.console.is_terminal and now.stage != self._stage:
            self.note(f"{now.stage} …")
        self._stage = now.stage


@contextmanager
def work_display(place: Path, message: Callable[[Path], str] = stopped) -> Iterator[WorkDisplay]:
    """A `WorkDisplay` with quiet libraries. Ctrl-C prints what is in `place`, and ends the command."""
    from DeepCache.cli.loading import quiet_libraries

    try:
        with quiet_libraries(), WorkDisplay() as display:
            yield display
    except KeyboardInterrupt:
        note(message(place))
        raise typer.Exit(INTERRUPTED) from None


class BatchDisplay(_Display):
    """A bar of images with their rate, failures and the time left; elsewhere a line every half a minute."""

    def __init__(self) -> None:
        super().__init__(
            bars.BarColumn(), bars.MofNCompleteColumn(), bars.TextColumn("{task.fields[more]}", markup=False)
        )
        self._bar = self.add_task("", total=None, more="")
        self._printed_at = 0.0

    def __call__(self, now: BatchProgress) -> None:
        finished, more = now.done + now.failed, _more(now)
        self.update(self._bar, description=now.stage, completed=finished, total=now.rows or None, more=more)
        if self.console.is_terminal:
            return
        is_due = now.stage == _GENERATING and time.monotonic() - self._printed_at >= _LINE_EVERY_SECONDS
        if is_due or now.stage != self._stage:
            self._printed_at = time.monotonic()
            self.note(f"{now.stage}: {finished} of {now.rows}, {more}" if more else f"{now.stage} …")
        self._stage = now.stage


def _more(now: BatchProgress) -> str:
    if not now.drawn:
        return ""
    parts = [f"{now.per_second:.2f} a second", f"{now.done} done", f"{now.failed} failed"]
    if now.stage == _GENERATING and now.seconds_left is not None:
        parts.append(f"{timedelta(seconds=round(now.seconds_left))} left")
    return ", ".join(parts)


class _PatternColumn(bars.ProgressColumn):
    """The steps as a bar: full, shallow and skipped ones that are done, and the remaining ones."""

    def __init__(self) -> None:
        super().__init__()
        self._width = max(10, Console(stderr=True).width - _ROOM_FOR_OTHER_COLUMNS)

    def render(self, task: bars.Task) -> Text:
        pattern: str = task.fields.get("pattern", "")
        text = Text(no_wrap=True)
        for character in pattern:
            text.append(*_STEPS.get(character, ("·", "cyan")))
        text.append("─" * max(0, int(task.total or 0) - len(pattern)), "bright_black")
        # The part of a long run around the current step.
        first = max(0, min(len(pattern) - self._width * 3 // 4, len(text) - self._width))
        return text[first : first + self._width]
