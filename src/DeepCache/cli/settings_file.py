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

__all__ = ["SettingsFile", "find_settings_file"]

_OWN_FILE, _PROJECT_FILE = "deepcache.toml", "pyproject.toml"


@dataclass(frozen=True)
class SettingsFile:
    """What a file sets.

    Args:
        path: the file.
        values: settings of all commands by the names of the options, and tables of settings of one command by its name.
    """

    path: Path
    values: Mapping[str, Any]

    def values_for(self, command: str, options: Mapping[str, Iterable[str]]) -> dict[str, Any]:
        """What it sets for a command, by the name of the option.

        Args:
            command: the name of the command.
            options: the names of the options of every command.

        Raises:
            ValueError: no command has an option of this name, or not the command of the table that it is in, or a value
                is a table or a date.
        """
        shared = {_option(name): value for name, value in self.values.items() if name not in options}
        for name, value in shared.items():
            self._check(name, value, {each for known in options.values() for each in known}, "")
        tables = {name: value for name, value in self.values.items() if name in options}
        for name, table in tables.items():
            if not isinstance(table, Mapping):
                raise ValueError(f"{self.path}: {name} must be a table of settings, got {table!r}")
            for key, value in table.items():
                self._check(_option(key), value, set(options[name]), f" for {name}")
        own = {_option(name): value for name, value in tables.get(command, {}).items()}
        return {name: value for name, value in shared.items() if name in set(options[command])} | own

    def _check(self, name: str, value: Any, known: set[str], where: str) -> None:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f". Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{self.path}: unknown setting {name!r}{where}{hint}")
        of_one_kind = value if isinstance(value, list) else [value]
        if not all(isinstance(each, str | int | float) for each in of_one_kind):
            raise ValueError(f"{self.path}: {name}{where} must be a value or a list of values, got {value!r}")


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
