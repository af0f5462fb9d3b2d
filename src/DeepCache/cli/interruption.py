"""Ctrl-C ends every command with exit status 130 and without a traceback, from its first import to its end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

__all__ = ["INTERRUPTED", "keep_on_interrupt", "on_interrupt", "stopped", "was_interrupted"]

INTERRUPTED = 130
"""The exit status of a command that Ctrl-C ended."""

# How long after an interrupt that Python dropped it is repeated.
_REPEAT_SECONDS = 0.05


class _State:
    """What the handler of the signal knows."""

    interrupted = False
    keeps = False


def keep_on_interrupt() -> None:
    """From now on Ctrl-C raises `KeyboardInterrupt`: there is something to keep, to report or to clean up.

    Until then it ends the process at once. An exception in the middle of an import may be dropped or replaced by
    another one, depending on the package that is imported.
    """
    _State.keeps = True


def was_interrupted() -> bool:
    """Whether Ctrl-C was pressed, also where another exception came of it."""
    return _State.interrupted


def stopped(place: str | os.PathLike[str]) -> str:
    """What a command that resumes says when it was interrupted.

    Args:
        place: where it keeps what it has done.
    """
    if not os.path.exists(place):
        return "Stopped before anything was measured."
    return f"Stopped. The same command resumes from what is in {os.fspath(place)}."


@contextmanager
def on_interrupt() -> Iterator[None]:
    """Handles Ctrl-C for the rest of the process, unless the process was started so that it ignores the signal."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _on_signal)
    sys.unraisablehook = _repeated(sys.unraisablehook)
    try:
        yield
    except (Exception, SystemExit):
        if _State.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        # What is left is the end of the interpreter, where exceptions are printed and dropped.
        _State.keeps = False


def _on_signal(number: int, frame: FrameType | None) -> None:
    _State.interrupted = True
    if _State.keeps:
        raise KeyboardInterrupt
    with suppress(Exception):
        sys.stdout.flush()
    with suppress(OSError):
        if os.isatty(2):
            # A note with a spinner may be on this line, and it hides the cursor.
            os.write(2, b"\r\x1b[2K\x1b[?25h")
    os._exit(INTERRUPTED)


def _repeated(others: Callable[[Any], object]) -> Callable[[Any], object]:
    """A hook for exceptions that Python cannot raise, such as in a finaliser: an interrupt is repeated a little later,
    all others go to the hook before."""

    def hook(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            others(unraisable)
            return
        from threading import Timer

        timer = Timer(_REPEAT_SECONDS, _interrupt_main_thread)
        timer.daemon = True
        timer.start()

    return hook


def _interrupt_main_thread() -> None:
    from _thread import interrupt_main
    from threading import main_thread

    ident = main_thread().ident
    if hasattr(signal, "pthread_kill") and ident is not None:
        # This ends a call that waits, too.
        signal.pthread_kill(ident, signal.SIGINT)
    else:
        interrupt_main()
