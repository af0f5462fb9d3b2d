"""Turns invalid input into one line on stderr with exit status 2, and warnings of the library into one line each."""

from __future__ import annotations

import copy
import logging
import os
import re
import sys
import warnings
from functools import partial
from pathlib import Path
from reprlib import Repr
from typing import Any, NoReturn

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from DeepCache.cli.interruption import INTERRUPTED, was_interrupted
from DeepCache.cli.settings_file import defaults_for, options_of
from DeepCache.errors import REPORTED_ERRORS

_WRONG_INPUT = 2
_LIBRARY = str(Path(__file__).parents[1])
# A prompt without quotes is many arguments, and the message of typer quotes all of them.
_LONGEST_USAGE = 300
_SHORTENED = Repr()
_SHORTENED.maxstring = _SHORTENED.maxother = 60
_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false"}

# The class of typer's own errors, which it does not export: the base of one that it does.
_UsageError: type[typer.BadParameter] = typer.BadParameter.__mro__[1]


class CommandGroup(TyperGroup):
    """Commands that report invalid input in one line.

    With the environment variable `DEEPCACHE_TRACEBACK`, errors of the library keep their traceback.
    """

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        # Transformers imports torchao, which warns about each kernel that does not run on this machine.
        logging.getLogger("torchao").setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = partial(_show_warning, warnings.showwarning)
                status = super().main(*args, **kwargs | {"standalone_mode": False})
        except REPORTED_ERRORS as error:
            if was_interrupted():
                sys.exit(INTERRUPTED)
            if os.environ.get("DEEPCACHE_TRACEBACK"):
                raise
            _print(_message(error))
            sys.exit(_WRONG_INPUT)
        except (KeyboardInterrupt, typer.Abort):
            sys.exit(INTERRUPTED)
        except _UsageError as error:
            _print(_usage(error))
            sys.exit(_WRONG_INPUT)
        sys.exit(status if isinstance(status, int) else 0)


class Command(TyperCommand):
    """A command whose help shows square brackets, and whose defaults can come from a settings file or an image."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        shown = copy.copy(self)
        shown.params = [copy.copy(parameter) for parameter in self.params]
        for one in (shown, *shown.params):
            if text := getattr(one, "help", None):
                # A paragraph is one line, for any width of the terminal.
                vars(one)["help"] = escape(re.sub(r"(?<!\n)\n(?!\n)", " ", text))
        super(Command, shown).format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.parent is None or ctx.resilient_parsing or any(name in args for name in ctx.help_option_names):
            return super().parse_args(ctx, args)
        parsed = self.make_parser(ctx).parse_args(list(args))[0]
        options = options_of(self)
        for name, parameter in options.items():
            # As a path, an empty name is the current folder.
            if parameter.metavar in ("FILE", "FOLDER") and parsed.get(parameter.name) == "":
                raise ValueError(f"--{name} must name a {parameter.metavar.lower()}, got ''")
        given = {name: parsed[parameter.name] for name, parameter in options.items() if parameter.name in parsed}
        source, defaults = defaults_for(self, ctx, given)
        parameters = {name: parameter.name for name, parameter in options.items()} | {"prompt": "prompts"}
        ctx.default_map = {parameters[name]: value for name, value in defaults.items()}
        try:
            left = super().parse_args(ctx, args)
        except _UsageError as error:
            wrong = getattr(error, "param", None)
            if wrong is None or wrong.name not in ctx.default_map:
                raise
            raise ValueError(f"{source}: {_usage(error)}") from error
        if defaults:
            print(f"Settings from {source}: {', '.join(sorted(defaults))}", file=sys.stderr)
        return left


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        where = "" if error.filename is None else f" {str(error.filename)!r}"
        return f"cannot read or write{where}: {error.strerror}"
    return str(error) or type(error).__name__


def _usage(error: Any) -> str:
    """An error of typer, with the value where typer does not name it."""
    cause, parameter = error.__cause__, getattr(error, "param", None)
    if parameter is None or not hasattr(cause, "errors"):
        message = str(error.format_message())
        return message if len(message) <= _LONGEST_USAGE else message[:_LONGEST_USAGE] + "…"
    wrong = cause.errors()[0]
    kind = _TYPES.get(wrong["type"].split("_")[0])
    allowed = f"cannot be used ({wrong['msg']})" if kind is None else f"must be {kind}"
    name = parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar or parameter.name
    return f"{name} {allowed}, got {_SHORTENED.repr(wrong['input'])}"


def _show_warning(
    others: Any, message: Warning | str, category: type[Warning], filename: str, *where: Any, **more: Any
) -> None:
    if filename.startswith(_LIBRARY):
        _print(f"warning: {message}")
    else:
        others(message, category, filename, *where, **more)


def _print(message: str) -> None:
    print("deepcache: " + " ".join(message.split()), file=sys.stderr)
