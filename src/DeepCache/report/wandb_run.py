"""The tables, images and charts of a report as a run of Weights & Biases."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

__all__ = ["WandbRun", "check_wandb", "log_to_wandb", "wandb_folder"]

# Folders that wandb writes to; without these variables some of it goes to the home folder or the working directory.
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


class WandbRun(NamedTuple):
    """A run of Weights & Biases.

    Args:
        folder: the folder of the run.
        url: its page; None if it is offline, and `wandb sync FOLDER` uploads it.
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
    """Logs the content of a report as one run of Weights & Biases: tables, sample images, charts, and the settings and
    provenance of every result as its configuration.

    It needs no account and never asks for one. `WANDB_MODE` is respected; if it is not set and no key is found
    (`WANDB_API_KEY`, `.netrc`), the run is offline. `WANDB_BASE_URL` selects another server.

    Args:
        paths: result files, as for `write_report`.
        folder: the folder for everything that wandb writes; created if it does not exist.
        project: the project; defaults to `WANDB_PROJECT` or `deepcache`.
        title: the name of the run; defaults to the models.

    Raises:
        ValueError: as `write_report`, or `WANDB_MODE` is `disabled`.
        OSError: as `write_report`, or the server cannot be reached.
        ImportError: wandb is not installed.

    Example::

        run = log_to_wandb(["benchmark.json"], "report-wandb")
        print(run.url)  # None for an offline run
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
        "project": project or os.environ.get("WANDB_PROJECT") or "deepcache",
        "title": title,
    }
    # In a separate process: wandb reads its folders from the environment once, and other uses of wandb in the program
    # that calls this are not affected.
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
        lines = done.stderr.strip().splitlines() or ["no error message"]
        raise OSError(f"logging to Weights & Biases failed: {lines[-1]}; WANDB_MODE=offline needs no network")
    answer = json.loads(done.stdout.splitlines()[-1])
    return WandbRun(Path(folder) / Path(answer["folder"]).relative_to(place), answer["url"])


def check_wandb() -> None:
    """Raises `ImportError` if wandb is not installed, and `ValueError` if it is disabled."""
    if find_spec("wandb") is None:
        raise ImportError("logging to Weights & Biases requires wandb: pip install 'DeepCache[wandb]'")
    if os.environ.get("WANDB_MODE") == "disabled":
        raise ValueError("WANDB_MODE is 'disabled', so nothing can be logged; unset it, or set it to 'offline'")


def wandb_folder(report: Path) -> Path:
    """The folder for the run of a report, such as `out/report-wandb` for `out/report.html`."""
    return report.with_name(f"{report.stem}-wandb")


def _has_key() -> bool:
    """Whether wandb knows an account."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    server = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    for path in [os.environ.get("NETRC")] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]:
        try:
            if netrc(Path(str(path)).expanduser()).authenticators(server) is not None:
                return True
        except (OSError, NetrcParseError):
            continue
    return False
