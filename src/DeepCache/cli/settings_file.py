"""Defaults of options from a settings file (`deepcache.toml`, or `[tool.deepcache]` in `pyproject.toml`), or with
`--from` from an image."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_CACHING = {"interval", "branch", "skip-mode", "threshold", "between", "forecast", "guidance-reuse"}
# Defaults that an option on the command line removes, since the two cannot be combined.
_INCOMPATIBLE = {
    "preset": _CACHING | {"plan", "force-plan"},
    "plan": _CACHING | {"preset", "force-plan"},
    **{name: {"preset", "plan", "force-plan"} for name in _CACHING},
    "skip-mode": {"preset", "plan", "force-plan", "threshold"},
    "compile": {"runtime"},
    "runtime": {"compile"},
}


def defaults_for(command: Any, context: Any, given: Mapping[str, Any]) -> tuple[Path | None, dict[str, Any]]:
    """The file or image that sets defaults of a command, and their values by option.

    Args:
        command: the command.
        context: its context, whose parent is that of `deepcache`.
        given: the options on the command line.

    Raises:
        ValueError: a settings file or an image cannot be used.
        OSError: it cannot be read.
    """
    source, values = _from_image(given) if "from" in given else _from_file(context)
    removed = {*given, *(name for option in given for name in _INCOMPATIBLE.get(option, ()))}
    values = {name: value for name, value in values.items() if name not in removed}
    names = {*given, *values}
    others = sorted(names & _INCOMPATIBLE["preset"])
    if "preset" in names and others:
        raise ValueError(f"--preset cannot be combined with --{', --'.join(others)}. Remove one of them")
    return source, values


def options_of(command: Any) -> dict[str, Any]:
    """The options of a command by their long names, without those that only print and exit."""
    return {
        name.removeprefix("--"): parameter
        for parameter in command.params
        if parameter.param_type_name == "option" and not parameter.is_eager
        for name in parameter.opts
        if name.startswith("--")
    }


def _from_image(given: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    from DeepCache.generation import read_recorded

    image = read_recorded(given["from"])
    if missing := [f"--{name}" for name in image.missing if name not in given]:
        them = "it" if len(missing) == 1 else "them"
        raise ValueError(
            f"the metadata of {image.path} does not contain {' and '.join(missing)}. Add {them} to the command"
        )
    values = dict(image.options)
    prompt = values.pop("prompt")
    return image.path, values if "prompts" in given else values | {"prompt": [prompt]}


def _from_file(context: Any) -> tuple[Path | None, dict[str, Any]]:
    found = find_settings_file(Path.cwd())
    if found is None:
        return None, {}
    path, values = found
    # --from is for the command line only.
    options = {name: options_of(each).keys() - {"from"} for name, each in context.parent.command.commands.items()}
    every_option = {option for known in options.values() for option in known}
    shared = {name: value for name, value in values.items() if name not in options}
    own: dict[str, Any] = {}
    settings = _checked(path, shared, every_option)
    for command, table in values.items():
        if command not in options:
            continue
        if not isinstance(table, Mapping):
            raise ValueError(f"{path}: {command} must be a table of settings, got {table!r}")
        checked = _checked(path, table, options[command], f" for {command}")
        if command == context.info_name:
            own = checked
    return path, {name: value for name, value in settings.items() if name in options[context.info_name]} | own


def _checked(path: Path, values: Mapping[str, Any], known: Iterable[str], where: str = "") -> dict[str, Any]:
    """The values by option, after a check of names and types."""
    options = {name.replace("_", "-"): value for name, value in values.items()}
    for name, value in options.items():
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f". Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{path}: unknown setting {name!r}{where}{hint}")
        if not all(isinstance(each, str | int | float) for each in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{path}: {name}{where} must be a value or a list of values, got {value!r}")
    return options


def find_settings_file(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The settings file of a folder, or of its closest parent that has one, and what it contains.

    `deepcache.toml` comes before `pyproject.toml`, which is used if it has a table `tool.deepcache`.

    Raises:
        ValueError: a file is not valid TOML.
        OSError: a file cannot be read.
    """
    for place in (folder, *folder.parents):
        if (path := place / "deepcache.toml").is_file():
            return path, _read(path)
        if (path := place / "pyproject.toml").is_file():
            tool = _read(path).get("tool", {})
            if "deepcache" in tool:
                return path, tool["deepcache"]
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    return found
