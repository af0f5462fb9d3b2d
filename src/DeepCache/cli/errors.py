"""What the user got wrong becomes one line on stderr and exit status 2, and a warning of the library one line without
a status; this is the one place."""

from __future__ import annotations

import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from DeepCache.wrong_input import WRONG_INPUT_ERRORS

__all__ = ["WRONG_INPUT", "CommandGroup"]

WRONG_INPUT = 2

_LIBRARY = str(Path(__file__).parents[1])

# The class of typer's own complaints, which it does not export: the base of one that it does.
_UsageError: type[typer.BadParameter] = typer.BadParameter.__mro__[1]


class CommandGroup(TyperGroup):
    """A group of commands that tells of wrong input in one line.

    With the environment variable `DEEPCACHE_TRACEBACK` set, errors of the library come with their
    traceback, for a bug report.
    """

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = partial(_show_warning, warnings.showwarning)
                status = super().main(*args, **kwargs | {"standalone_mode": False})
        except WRONG_INPUT_ERRORS as error:
            if os.environ.get("DEEPCACHE_TRACEBACK"):
                raise
            _stop(str(error) or type(error).__name__)
        except (KeyboardInterrupt, typer.Abort):
            sys.exit(130)
        except _UsageError as error:
            _stop(error.format_message())
        sys.exit(status if isinstance(status, int) else 0)


def _show_warning(
    others: Any, message: Warning | str, category: type[Warning], filename: str, *where: Any, **more: Any
) -> None:
    """Prints a warning of the library as a line, and leaves those of other packages to Python."""
    if filename.startswith(_LIBRARY):
        _print(f"warning: {message}")
    else:
        others(message, category, filename, *where, **more)


def _stop(message: str) -> NoReturn:
    _print(message)
    sys.exit(WRONG_INPUT)


def _print(message: str) -> None:
    print("deepcache: " + " ".join(message.split()), file=sys.stderr)
