"""Runs what pages tell people to type, or checks it as far as a machine without a network can.

A line of a kind that is not here fails: nothing falls through.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from typer.main import get_command
from typer.testing import CliRunner

from DeepCache.cli import app
from tests.docs.code_blocks import ROOT
from tests.docs.offline import NOT_RUN, lessened, substituted

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
_PIP_FLAGS = {"--upgrade", "-U", "--no-deps", "-e", "--editable", "--yes", "-y"}
_PIP_WITH_VALUE = {"--extra-index-url", "--index-url"}


def check_line(line: str) -> None:
    """Runs or checks one line.

    Raises:
        AssertionError: it is wrong, or of no known kind.
    """
    words = shlex.split(line, comments=True)
    name = words[0].removeprefix(".venv/bin/")
    assert name in KINDS, f"no check for a line that starts with {name!r}: {line}"
    KINDS[name](words[1:])


def _deepcache(arguments: list[str]) -> None:
    name = arguments[0]
    if not name.startswith("-"):
        group = get_command(app)
        assert name in group.commands, f"there is no command {name!r}"
        # All options as they are written, before some are left out or added.
        group.commands[name].make_context(name, arguments[1:])
        if name in NOT_RUN:
            return
        arguments = lessened(shlex.split(substituted(shlex.join(arguments))))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, f"deepcache {shlex.join(arguments)}\n{result.output}\n{result.exception!r}"


def _make(words: list[str]) -> None:
    targets = [word for word in words if "=" not in word]
    assert targets
    assert set(targets) <= _TARGETS, f"the Makefile has {sorted(_TARGETS)}"


def _pip(words: list[str]) -> None:
    assert words[0] in ("install", "uninstall"), words
    named = [
        word
        for before, word in zip(words, words[1:], strict=False)
        if word not in _PIP_FLAGS | _PIP_WITH_VALUE and before not in _PIP_WITH_VALUE
    ]
    assert named
    for name in named:
        assert not name.startswith("-"), f"no check for pip's option {name}"
        here = re.fullmatch(r"\.(\[(?P<extras>[\w,-]+)\])?", name)
        if name.endswith(".whl") and "@" not in name:
            assert name.startswith(f"deepcache-{_PROJECT['project']['version']}-"), name
            continue
        requirement = Requirement(f"DeepCache[{here['extras'] or ''}]" if here else name)
        if requirement.name == "DeepCache":
            assert requirement.extras <= _PROJECT["project"]["optional-dependencies"].keys(), name


def _python(words: list[str]) -> None:
    option, *rest = words
    if option == "-c":
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(rest[0], "python -c", "exec"), {"__name__": "__main__"})
    elif option == "-m" and rest[0] == "pip":
        _pip(rest[1:])
    elif option == "-m" and rest[0] == "DeepCache":
        _deepcache(rest[1:])
    elif option == "-m":
        module = importlib.util.find_spec(rest[0])
        assert module is not None, f"there is no module {rest[0]}"
        _check_options(Path(module.origin), rest[1:])
    else:
        _check_options(ROOT / option, rest)


def _check_options(program: Path, words: list[str]) -> None:
    text = program.read_text(encoding="utf-8")
    for word in words:
        assert not word.startswith("-") or f'"{word.split("=")[0]}"' in text, f"{program} takes no {word}"
        assert not word.endswith(".py") or (ROOT / word).is_file(), f"there is no {word}"


def _ray(words: list[str]) -> None:
    from ray.dashboard.modules.job.cli import job_cli_group
    from ray.scripts.scripts import cli

    words, own = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    group = cli
    if words[0] == "job":
        group, words = job_cli_group, words[1:]
    command = group.commands[words[0]]
    arguments = [*words[1:], *(["--", *own] if own else [])]
    command.make_context(words[0], arguments)
    if own:
        check_line(shlex.join(own))


KINDS: dict[str, Callable[[list[str]], None]] = {
    "deepcache": _deepcache,
    "make": _make,
    "pip": _pip,
    "python": _python,
    "ray": _ray,
}
"""The programs that lines begin with."""
