"""The tables, images and charts of a report as a run of Weights & Biases."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["WandbRun", "check_wandb", "log_to_wandb", "wandb_folder"]

_PROJECT = "deepcache"
_SERVER = "https://api.wandb.ai"
# What wandb writes and where: without these, some of it goes into the home folder or the working directory.
_FOLDERS = {
    "WANDB_DIR": ".",
    "WANDB_ARTIFACT_DIR": "artifacts",
    "WANDB_CACHE_DIR": "cache",
    "WANDB_CONFIG_DIR": "config",
    "WANDB_DATA_DIR": "data",
    "TMPDIR": "tmp",
    "TEMP": "tmp",
    "TMP": "tmp",
}


@dataclass(frozen=True)
class WandbRun:
    """A run of Weights & Biases.

    Args:
        folder: the folder of the run.
        url: its page; None where it is on this machine alone, and `wandb sync FOLDER` uploads it.
    """

    folder: Path
    url: str | None


def log_to_wandb(
    paths: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    project: str | None = None,
    title: str | None = None,
) -> WandbRun:
    """Logs what `write_report` shows as one run of Weights & Biases: tables, sample images, charts, and as its
    configuration the settings and provenance of every result.

    It works without an account and never asks for one. `WANDB_MODE` is respected; where it is not set and no key is
    known (`WANDB_API_KEY`, `.netrc`), the run is offline. A server of your own is named by `WANDB_BASE_URL`.

    Args:
        paths: result files, as `write_report` takes them.
        folder: where all that wandb writes goes, and nothing goes elsewhere; made if it is not there.
        project: the project; `WANDB_PROJECT` or `deepcache` by default.
        title: the name of the run; the models by default.

    Raises:
        ValueError: as `write_report`, or `WANDB_MODE` is `disabled`.
        OSError: as `write_report`, or the server cannot be reached.
        ImportError: wandb is not installed.

    Example:
        >>> run = log_to_wandb(["benchmark.json"], "report-wandb")  # doctest: +SKIP
        >>> run.url is None  # doctest: +SKIP
        True
    """
    check_wandb()
    place = Path(folder).absolute()
    for name in _FOLDERS.values():
        (place / name).mkdir(parents=True, exist_ok=True)
    environment = os.environ | {variable: str(place / name) for variable, name in _FOLDERS.items()}
    environment["WANDB_MODE"] = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
    job = {
        "paths": [os.fspath(path) for path in paths],
        "folder": str(place),
        "project": project or os.environ.get("WANDB_PROJECT") or _PROJECT,
        "title": title,
    }
    # In a process of its own: wandb has its folders from the environment, once for all, and what else the program that
    # calls this does with wandb is not touched.
    done = subprocess.run(
        [sys.executable, "-m", "DeepCache.report.wandb_process"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment,
        check=False,
    )
    shutil.rmtree(place / "tmp", ignore_errors=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it says nothing"]
        raise OSError(f"logging to Weights & Biases failed: {lines[-1]}; WANDB_MODE=offline needs no network")
    answer = json.loads(done.stdout.splitlines()[-1])
    return WandbRun(Path(folder) / Path(answer["folder"]).relative_to(place), answer["url"])


def check_wandb() -> None:
    """Refuses early what could not be logged.

    Raises:
        ImportError: wandb is not installed.
        ValueError: it is switched off.
    """
    if find_spec("wandb") is None:
        raise ImportError("logging to Weights & Biases takes wandb: pip install 'DeepCache[wandb]'")
    if os.environ.get("WANDB_MODE") == "disabled":
        raise ValueError("WANDB_MODE is 'disabled', so that nothing can be logged; unset it, or set it to 'offline'")


def wandb_folder(report: Path) -> Path:
    """The folder for a report's run: beside it.

    Example:
        >>> wandb_folder(Path("out/report.html")).name
        'report-wandb'
    """
    return report.with_name(f"{report.stem}-wandb")


def _has_key() -> bool:
    """Whether wandb knows an account, so that it does not ask for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    server = urlsplit(os.environ.get("WANDB_BASE_URL") or _SERVER).netloc
    file = os.environ.get("NETRC")
    places = [Path(file)] if file else [Path("~/.netrc").expanduser(), Path("~/_netrc").expanduser()]
    for place in places:
        try:
            if netrc(place).authenticators(server) is not None:
                return True
        except (OSError, NetrcParseError):
            continue
    return False
