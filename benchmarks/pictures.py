"""Makes the images of single runs in README.md and docs, and records their figures: side by side, by
`deepcache generate --compare`, and the page of `deepcache app` in Chromium. The output in docs/start.md and the example
on the page come from here too.

    python -m benchmarks.pictures
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import uvicorn
from PIL import Image
from playwright.sync_api import sync_playwright

from DeepCache.app.comparison_view import EXAMPLE
from DeepCache.app.render_worker import Comparison, RenderWorker
from DeepCache.app.server import AppSettings, address, build_app, listen
from DeepCache.bench.provenance import provenance
from DeepCache.bench.result_file import write_result

HERE = Path(__file__).parent
IMAGES = HERE.parent / "docs" / "images"
RESULT = HERE / "pictures.json"
SHOWN = "a big striped red circle left of a blue square, with a yellow star below"
FIRST = "a red circle left of a blue square"
PAGE_EXAMPLE = HERE.parent / "src" / "DeepCache" / "app" / "example"


def main() -> None:
    result = provenance(seed=0) | {
        "threads": torch.get_num_threads(),
        "side_by_side": _compare(SHOWN, IMAGES / "side-by-side.png"),
        "first_picture": _compare(FIRST, None),
        "page": _page(IMAGES / "app.png"),
    }
    write_result(RESULT, result)


def file_of(path: Path) -> dict[str, str]:
    """An image file in the format of the result."""
    return {"picture": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _compare(prompt: str, path: Path | None) -> dict[str, Any]:
    """The output of `deepcache generate` for a prompt; its image goes to the path."""
    with TemporaryDirectory() as folder:
        command = ["-m", "DeepCache", "generate", prompt, "--compare"]
        run = subprocess.run([sys.executable, *command], cwd=folder, check=True, capture_output=True, text=True)
        printed = run.stdout.splitlines()
        if path is None:
            return {"prompt": prompt, "printed": printed}
        (made,) = Path(folder).glob("*/*-compare.png")
        # Without the text chunks, which say what the result says.
        Image.open(made).convert("RGB").save(path, optimize=True)
    return {"prompt": prompt, "printed": printed, **file_of(path)}


def _page(path: Path) -> dict[str, Any]:
    """The example on the page, and a screenshot of the page that shows it."""
    listening = listen("127.0.0.1", 0)
    with RenderWorker(AppSettings(device="cpu")) as worker, sync_playwright() as playwright:
        *_, found = worker.run(EXAMPLE, threading.Event())
        assert isinstance(found, Comparison), found
        comparison = asdict(found)
        (PAGE_EXAMPLE / "image.png").write_bytes(comparison.pop("png"))
        (PAGE_EXAMPLE / "original.png").write_bytes(comparison.pop("original_png"))
        figures = {"threads": torch.get_num_threads(), "comparison": comparison}
        (PAGE_EXAMPLE / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        server = uvicorn.Server(uvicorn.Config(build_app(worker), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 900})
        page.goto(address(listening))
        page.wait_for_selector(".comparison")
        page.wait_for_timeout(500)
        page.screenshot(path=path, full_page=True)
        browser.close()
        server.should_exit = True
        thread.join()
    # Two hundred colours are enough for a page, and a quarter of the bytes.
    Image.open(path).convert("RGB").quantize(200, dither=Image.Dither.NONE).save(path, optimize=True)
    return {"date": provenance(seed=0)["date"], **figures, **file_of(path)}


if __name__ == "__main__":
    main()
