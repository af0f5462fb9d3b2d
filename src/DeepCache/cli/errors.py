"""What the user got wrong becomes one line on stderr and exit status 2, and a warning of the library one line without
a status; this is the one place."""

from __future__ import annotations

import copy
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from reprlib import Repr
from typing import Any, NoReturn

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from DeepCache.cli.defaults import defaults_of
from DeepCache.cli.interruption import INTERRUPTED, was_interrupted
from DeepCache.errors import REPORTED_ERRORS

__all__ = ["WRONG_INPUT", "Command", "CommandGroup"]

WRONG_INPUT = 2
_PLACES = ("FILE", "FOLDER")

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
            with warnings.catch_warnings(), _quiet_torchao():
                warnings.showwarning = partial(_show_warning, warnings.showwarning)
                status = super().main(*args, **kwargs | {"standalone_mode": False})
        except REPORTED_ERRORS as error:
            if was_interrupted():
                sys.exit(INTERRUPTED)
            if os.environ.get("DEEPCACHE_TRACEBACK"):
                raise
            _stop(_message(error))
        except (KeyboardInterrupt, typer.Abort):
            sys.exit(INTERRUPTED)
        except _UsageError as error:
            _stop(_usage(error))
        sys.exit(status if isinstance(status, int) else 0)


class Command(TyperCommand):
    """A command whose help shows square brackets as they are, which takes no empty name for a file, and whose defaults
    may come from a settings file or an image."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        shown = copy.copy(self)
        shown.params = [copy.copy(parameter) for parameter in self.params]
        for one in (shown, *shown.params):
            if text := getattr(one, "help", None):
                vars(one)["help"] = escape(text)
        super(Command, shown).format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # As a path, an empty name is the current folder.
        before = ""
        for word in args:
            name, _, value = word.partition("=") if word.startswith("--") and "=" in word else (before, "", word)
            for parameter in self.params:
                if not value and name in parameter.opts and parameter.metavar in _PLACES:
                    raise ValueError(
                        f"{name} must name a {parameter.metavar.lower()}, got ''. Leave it out or name one."
                    )
            before = word
        if ctx.parent is None or ctx.resilient_parsing or any(name in args for name in ctx.help_option_names):
            return super().parse_args(ctx, args)
        defaults = defaults_of(self, ctx, args)
        ctx.default_map = defaults.by_parameter
        try:
            left = super().parse_args(ctx, args)
        except _UsageError as error:
            wrong = getattr(error, "param", None)
            if wrong is None or wrong.name not in ctx.default_map:
                raise
            raise ValueError(f"{defaults.source}: {_usage(error)}") from error
        defaults.print()
        return left


@contextmanager
def _quiet_torchao() -> Iterator[None]:
    """Transformers imports torchao where it is installed, and torchao logs a warning for each of its kernels that does
    not fit this machine. Nothing here uses them."""
    logger = logging.getLogger("torchao")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        where = "" if error.filename is None else f" {str(error.filename)!r}"
        return f"cannot read or write{where}: {error.strerror}"
    return str(error) or type(error).__name__


# A prompt without quotes around it is many arguments.
_LONGEST_USAGE = 300
_SHORTENED = Repr()
_SHORTENED.maxstring = _SHORTENED.maxother = 60
_KINDS = {
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
}


def _usage(error: Any) -> str:
    """What is wrong with the command line, with the value where typer does not name it."""
    cause, parameter = error.__cause__, getattr(error, "param", None)
    if parameter is None or not hasattr(cause, "errors"):
        message = str(error.format_message())
        return message if len(message) <= _LONGEST_USAGE else message[:_LONGEST_USAGE] + "…"
    wrong = cause.errors()[0]
    allowed = _KINDS.get(wrong["type"].split("_")[0], f"cannot be used ({wrong['msg']})")
    name = parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar or parameter.name
    return f"{name} {allowed}, got {_SHORTENED.repr(wrong['input'])}"


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
