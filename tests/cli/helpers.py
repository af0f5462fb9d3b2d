"""What the tests of the commands share."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from typer.testing import Result

from DeepCache.generation import read_settings

DEEPCACHE = [sys.executable, "-m", "DeepCache"]


def complain(result: Result, *words: str) -> None:
    """Checks that invalid input is reported in one line, which is the only output."""
    assert len(result.stderr.splitlines()) == 1, result.output
    complain_at_the_end(result, *words)


def complain_at_the_end(result: Result, *words: str) -> None:
    """Checks that invalid input is reported in one line, after at most the progress before it."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    *progress, line = result.stderr.splitlines()
    assert line.startswith("deepcache: ")
    for word in words:
        assert word in line
    assert all(re.search(r"…$|: \d+ of \d+, |^Preset ", each) for each in progress)


def image_of(result: Result) -> str:
    """The first image of a command with `--json`."""
    assert result.exit_code == 0, result.output
    path: str = json.loads(result.stdout)["images"][0]["file"]
    return path


def pixels(path: str | Path) -> Any:
    return np.asarray(Image.open(path), dtype=int)


def same(first: str | Path, second: str | Path) -> bool:
    return bool(np.array_equal(pixels(first), pixels(second)))


def settings_of(path: str | Path) -> dict[str, Any]:
    settings: dict[str, Any] = read_settings(path)["settings"]
    return settings


def written(folder: str = "deepcache-output") -> list[Path]:
    return sorted(Path(folder).glob("*.png"))


def killed(arguments: list[str], output: Path, when: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Starts `python -m DeepCache`, kills it once `when` holds for its result file, and returns the file's content."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DEEPCACHE_TRACEBACK": "1"}
    errors = output.with_name("errors.txt")
    with (
        errors.open("w") as file,
        subprocess.Popen([*DEEPCACHE, *arguments], env=environment, stderr=file) as process,
    ):
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
