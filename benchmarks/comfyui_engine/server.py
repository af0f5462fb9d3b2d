"""ComfyUI's server, from the checkout at `COMFYUI_PATH`, without packages that the tests do not use."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from benchmarks.comfyui_engine.absent_modules import replace_packages

__all__ = ["Server"]

ROOT = Path(__file__).parents[2]
SECONDS_TO_START = 120
SECONDS_OF_A_RUN = 120


class Server:
    """A context manager that runs a server with our nodes and a loader of the bundled model.

    Args:
        folder: an empty folder for its nodes, images and settings. The checkout is not written to.
        options: more options of ComfyUI's command line.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        from DeepCache.comfyui.installing import install_nodes

        self._folder, self._options = folder, options
        (folder / "custom_nodes").mkdir()
        install_nodes(folder)
        here = Path(__file__).with_name("bundled_model_node")
        shutil.copytree(here, folder / "custom_nodes" / here.name, ignore=shutil.ignore_patterns("__pycache__"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"

    @property
    def log(self) -> str:
        """The output of the server."""
        return (self._folder / "log.txt").read_text(encoding="utf-8", errors="replace")

    def __enter__(self) -> Server:
        options = {
            "--base-directory": str(self._folder),
            "--database-url": f"sqlite:///{self._folder / 'comfyui.db'}",
            "--port": str(self._port),
        }
        command = [sys.executable, "-m", __name__, "--cpu", "--disable-api-nodes", *self._options]
        command += [word for option in options.items() for word in option]
        with (self._folder / "log.txt").open("wb") as log:
            # More threads are slower for such a small model.
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            self._wait_for_start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def get(self, path: str) -> bytes:
        """The response to a request.

        Raises:
            urllib.error.HTTPError: the server refuses it.
        """
        with urllib.request.urlopen(self.address + path, timeout=60) as answer:
            return answer.read()

    def run(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """Queues a workflow in the format of the API and waits for it.

        Returns:
            Its entry in the history.

        Raises:
            urllib.error.HTTPError: the server refuses it.
            TimeoutError: it takes too long.
        """
        request = urllib.request.Request(
            self.address + "/prompt", json.dumps({"prompt": prompt}).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            number = json.load(answer)["prompt_id"]
        end = time.monotonic() + SECONDS_OF_A_RUN
        while time.monotonic() < end:
            history = json.loads(self.get(f"/history/{number}"))
            if history:
                return history[number]
            time.sleep(0.1)
        raise TimeoutError(f"the workflow still runs after {SECONDS_OF_A_RUN} s:\n{self.log}")

    def image(self, entry: dict[str, Any], number: str) -> bytes:
        """The file of the first image that a node of a run has saved."""
        return self.get("/view?" + urlencode(entry["outputs"][number]["images"][0]))

    def _wait_for_start(self) -> None:
        end = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < end and self._process.poll() is None:
            try:
                self.get("/system_stats")
            except OSError:
                time.sleep(0.2)
            else:
                return
        raise RuntimeError(f"ComfyUI has not started:\n{self.log}")


if __name__ == "__main__":
    replace_packages("torchvision", "torchaudio", "av", "kornia", "spandrel")
    program = Path(os.environ["COMFYUI_PATH"]) / "main.py"
    # `python -m` puts the working directory, this repository, at this position.
    sys.path[0] = str(program.parent)
    sys.argv[0] = str(program)
    runpy.run_path(str(program), run_name="__main__")
