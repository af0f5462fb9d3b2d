"""Defaults of options from a settings file, or from an image with `--from`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from DeepCache.cli.settings_file import find_settings_file

__all__ = ["Defaults", "defaults_of"]

_PARTS = {"interval", "branch", "skip-mode", "threshold", "between", "forecast", "guidance-reuse"}
# An option on the command line also removes these defaults, which it cannot be combined with.
_INCOMPATIBLE = {
    "preset": _PARTS | {"plan", "force-plan"},
    "plan": _PARTS | {"preset", "force-plan"},
    **{part: {"preset", "plan", "force-plan"} for part in _PARTS},
    "skip-mode": {"preset", "plan", "force-plan", "threshold"},
    "compile": {"runtime"},
    "runtime": {"compile"},
}


@dataclass(frozen=True)
class Defaults:
    """Defaults of the options of a command.

    Args:
        source: the file that sets them; None where there is none.
        values: by the names of the options.
        by_parameter: the same by the names of the parameters.
    """

    source: Path | None
    values: dict[str, Any]
    by_parameter: dict[str, Any]

    def print(self) -> None:
        """Prints where they are from, if there are any."""
        if self.values:
            print(f"Settings from {self.source}: {', '.join(sorted(self.values))}", file=sys.stderr)


def defaults_of(command: Any, ctx: Any, args: list[str]) -> Defaults:
    """The defaults that a settings file or an image sets for a command.

    Args:
        command: the command.
        ctx: its context, whose parent is that of `deepcache`.
        args: the command line.

    Raises:
        ValueError: a settings file or an image cannot be used.
        OSError: it cannot be read.
    """
    options = _options_of(command)
    parsed = command.make_parser(ctx).parse_args(list(args))[0]
    given = {name: parsed[parameter.name] for name, parameter in options.items() if parameter.name in parsed}
    source, values = _from_image(given) if "from" in given else _from_file(ctx)
    values = _without_incompatible(values, given)
    _check_preset([*given, *values])
    names = {name: parameter.name for name, parameter in options.items()} | {"prompt": "prompts"}
    return Defaults(source, values, {names[name]: value for name, value in values.items()})


def _check_preset(names: Iterable[str]) -> None:
    """Refuses a preset with settings that it replaces, whatever their values are."""
    others = sorted({*names} & _INCOMPATIBLE["preset"])
    if "preset" in names and others:
        raise ValueError(f"--preset cannot be combined with --{', --'.join(others)}. Remove one of them")


def _from_file(ctx: Any) -> tuple[Path | None, dict[str, Any]]:
    file = find_settings_file(Path.cwd())
    if file is None:
        return None, {}
    # An image to regenerate is given on the command line alone.
    options = {name: _options_of(each).keys() - {"from"} for name, each in ctx.parent.command.commands.items()}
    return file.path, file.values_for(ctx.info_name, options)


def _from_image(given: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    from DeepCache.generation import read_recorded

    image = read_recorded(given["from"])
    if missing := [f"--{name}" for name in image.missing if name not in given]:
        raise ValueError(f"the metadata of {image.path} has no {' and no '.join(missing)}. Give what it was made with")
    values = dict(image.options)
    prompt = values.pop("prompt")
    return image.path, values if "prompts" in given else values | {"prompt": [prompt]}


def _without_incompatible(values: Mapping[str, Any], given: Iterable[str]) -> dict[str, Any]:
    """The values without options that are given, or cannot be combined with those.

    Example:
        >>> _without_incompatible({"interval": 5, "steps": 25}, ["preset"])
        {'steps': 25}
    """
    removed = {*given, *(name for option in given for name in _INCOMPATIBLE.get(option, ()))}
    return {name: value for name, value in values.items() if name not in removed}


def _options_of(command: Any) -> dict[str, Any]:
    """The options of a command by their long names; those that only print and exit are left out."""
    return {
        name.removeprefix("--"): parameter
        for parameter in command.params
        if parameter.param_type_name == "option" and not parameter.is_eager
        for name in parameter.opts
        if name.startswith("--")
    }
