"""What the tests of `deepcache benchmark` and `deepcache ablate` have in common."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer.main
from typer.testing import Result

from DeepCache.cli import app


def complain(result: Result, *words: str) -> None:
    """Checks that what was typed wrong is told in one line, and that nothing was written."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    line = result.stderr.splitlines()[-1]
    assert line.startswith("deepcache: ")
    for word in words:
        assert word in line
    # Before it at most what was being done.
    assert all(other.endswith("…") for other in result.stderr.splitlines()[:-1])


def options_of(command: str) -> list[str]:
    """The long names of all options of a command, but --help."""
    found: Any = typer.main.get_command(app)
    return [option.opts[0] for option in found.commands[command].params]


def options_shown(help_text: str) -> list[str]:
    """The options that stand at the beginning of a row of a help page."""
    return [line.split()[1] for line in help_text.splitlines() if line.startswith("│ --")]


def killed(arguments: list[str], output: Path, when: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Starts `python -m DeepCache`, kills it when its result file is so far, and returns what is in the file."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DEEPCACHE_TRACEBACK": "1"}
    command = [sys.executable, "-m", "DeepCache", *arguments]
    errors = output.with_name("errors.txt")
    with errors.open("w") as written, subprocess.Popen(command, env=environment, stderr=written) as process:
        try:
            while not (output.exists() and when(json.loads(output.read_text(encoding="utf-8")))):
                assert process.poll() is None, errors.read_text()
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
    errors.unlink()
    result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return result
