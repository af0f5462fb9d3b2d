"""Ctrl-C ends every command with exit status 130 and without a traceback, from its first import to its end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""The exit status of a command that was stopped with Ctrl-C."""


class _State:
    interrupted = False
    keeps = False


def keep_on_interrupt() -> None:
    """From now on, Ctrl-C raises `KeyboardInterrupt`: there are results to keep or resources to release.

    Before, it ends the process at once, because some packages drop or replace an exception during their import.
    """
    _State.keeps = True


def was_interrupted() -> bool:
    """Whether Ctrl-C was pressed, even if it resulted in another exception."""
    return _State.interrupted


def stopped(place: str | os.PathLike[str]) -> str:
    """The message of a command that can resume from `place`."""
    if not os.path.exists(place):
        return "Stopped before anything was measured."
    return f"Stopped. The same command resumes from {os.fspath(place)}."


@contextmanager
def on_interrupt() -> Iterator[None]:
    """Handles Ctrl-C for the rest of the process, unless the process was started so that it ignores the signal."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _on_signal)
    sys.unraisablehook = _repeating(sys.unraisablehook)
    try:
        yield
    except (Exception, SystemExit):
        if _State.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        # While the interpreter shuts down, exceptions are printed and dropped.
        _State.keeps = False


def _on_signal(number: int, frame: FrameType | None) -> None:
    _State.interrupted = True
    if _State.keeps:
        raise KeyboardInterrupt
    with suppress(Exception):
        sys.stdout.flush()
    with suppress(OSError):
        if os.isatty(2):
            # Clear a spinner on this line, and show the cursor again.
            os.write(2, b"\r\x1b[2K\x1b[?25h")
    os._exit(INTERRUPTED)


def _repeating(others: Callable[[Any], object]) -> Callable[[Any], object]:
    """A hook for exceptions that Python drops, such as those in a finalizer: it repeats an interrupt a little later."""

    def hook(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            others(unraisable)
            return
        from threading import Timer

        timer = Timer(0.05, _interrupt_main_thread)
        timer.daemon = True
        timer.start()

    return hook


def _interrupt_main_thread() -> None:
    from _thread import interrupt_main
    from threading import main_thread

    ident = main_thread().ident
    if hasattr(signal, "pthread_kill") and ident is not None:
        # This also ends a blocking call.
        signal.pthread_kill(ident, signal.SIGINT)
    else:
        interrupt_main()
