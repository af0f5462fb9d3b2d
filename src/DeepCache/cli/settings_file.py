"""Settings of commands from `deepcache.toml` or `[tool.deepcache]` in `pyproject.toml`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["SettingsFile", "find_settings_file", "without_replaced"]

_OWN_FILE, _PROJECT_FILE = "deepcache.toml", "pyproject.toml"
_PARTS = {"interval", "branch", "skip-mode", "threshold", "between", "forecast", "guidance-reuse"}
# An option on the command line replaces these, since they cannot be combined.
_REPLACED = {
    "preset": _PARTS | {"plan", "force-plan"},
    "plan": _PARTS | {"preset", "force-plan"},
    **{part: {"preset", "plan", "force-plan"} for part in _PARTS},
    "compile": {"runtime"},
    "runtime": {"compile"},
}
_REPLACED["skip-mode"] = _REPLACED["skip-mode"] | {"threshold"}


@dataclass(frozen=True)
class SettingsFile:
    """What a file sets.

    Args:
        path: the file.
        values: the settings of all commands by the names of the options, and a table for each command that has some of
            its own, by the command's name.
    """

    path: Path
    values: Mapping[str, Any]

    def values_for(self, command: str, options: Mapping[str, Iterable[str]]) -> dict[str, Any]:
        """What it sets for a command, by the name of the option.

        Args:
            command: the name of the command.
            options: the names of the options of every command.

        Raises:
            ValueError: no command has such an option, or this command has none of a table of its own, or a value is of
                a kind that no option has.
        """
        shared = {_option(name): value for name, value in self.values.items() if name not in options}
        for name, value in shared.items():
            self._check(name, value, {each for known in options.values() for each in known}, "")
        tables = {name: value for name, value in self.values.items() if name in options}
        for name, table in tables.items():
            if not isinstance(table, Mapping):
                raise ValueError(f"{self.path}: {name} must be a table of settings, got {table!r}")
            for key, value in table.items():
                self._check(_option(key), value, set(options[name]), f" of {name}")
        own = {_option(name): value for name, value in tables.get(command, {}).items()}
        return {name: value for name, value in shared.items() if name in set(options[command])} | own

    def _check(self, name: str, value: Any, known: set[str], where: str) -> None:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"{self.path}: there is no setting {name}{where}.{hint}")
        of_one_kind = value if isinstance(value, list) else [value]
        if not all(isinstance(each, str | int | float) for each in of_one_kind):
            raise ValueError(f"{self.path}: {name}{where} must be a value or a list of values, got {value!r}")


def without_replaced(values: Mapping[str, Any], given: Iterable[str]) -> dict[str, Any]:
    """Settings without those that options on the command line replace, because they are the same or cannot be combined.

    Example:
        >>> without_replaced({"interval": 5, "steps": 25}, ["preset"])
        {'steps': 25}
    """
    replaced = {*given, *(name for option in given for name in _REPLACED.get(option, ()))}
    return {name: value for name, value in values.items() if name not in replaced}


def find_settings_file(folder: Path) -> SettingsFile | None:
    """The settings file of a folder or else of the nearest of its parents that has one.

    `deepcache.toml` comes before `pyproject.toml`, which counts where it has a table `tool.deepcache`.

    Raises:
        ValueError: a file is not valid TOML.
        OSError: a file cannot be read.
    """
    for place in (folder, *folder.parents):
        if (path := place / _OWN_FILE).is_file():
            return SettingsFile(path, _read(path))
        if (path := place / _PROJECT_FILE).is_file():
            tool = _read(path).get("tool", {})
            if "deepcache" in tool:
                return SettingsFile(path, tool["deepcache"])
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    return found


def _option(name: str) -> str:
    return name.replace("_", "-")
