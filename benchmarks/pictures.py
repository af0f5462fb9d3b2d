"""Makes the pictures that README.md and docs show of single runs, and writes down the figures in them: side by side, as
`deepcache generate --compare` puts them, and the page of `deepcache app` in Chromium. What docs/start.md prints comes
from here too.

    python -m benchmarks.pictures
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import uvicorn
from PIL import Image
from playwright.sync_api import sync_playwright

from DeepCache.app.easel import Easel
from DeepCache.app.server import AppSettings, address, build_app, listen
from DeepCache.bench.provenance import provenance
from DeepCache.bench.result_file import write_result

HERE = Path(__file__).parent
IMAGES = HERE.parent / "docs" / "images"
RESULT = HERE / "pictures.json"
SHOWN = "a big striped red circle left of a blue square, with a yellow star below"
FIRST = "a red circle left of a blue square"
INTERVAL = 5  # on the page


def main() -> None:
    result = provenance(seed=0) | {
        "threads": torch.get_num_threads(),
        "side_by_side": _compare(SHOWN, IMAGES / "side-by-side.png"),
        "first_picture": _compare(FIRST, None),
        "page": _page(IMAGES / "app.png"),
    }
    write_result(RESULT, result)


def picture(path: Path) -> dict[str, str]:
    """A picture as a result names it."""
    return {"picture": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _compare(prompt: str, path: Path | None) -> dict[str, Any]:
    """What `deepcache generate` says of a prompt; its picture goes to the path."""
    with TemporaryDirectory() as folder:
        command = ["-m", "DeepCache", "generate", prompt, "--compare"]
        run = subprocess.run([sys.executable, *command], cwd=folder, check=True, capture_output=True, text=True)
        printed = run.stdout.splitlines()
        if path is None:
            return {"prompt": prompt, "printed": printed}
        (made,) = Path(folder).glob("*/*-compare.png")
        # Without the text chunks, which say what the result says.
        Image.open(made).convert("RGB").save(path, optimize=True)
    return {"prompt": prompt, "printed": printed, **picture(path)}


def _page(path: Path) -> dict[str, Any]:
    """What the page shows of a picture."""
    settings = AppSettings(device="cpu")
    listening = listen("127.0.0.1", 0)
    with Easel(settings.models, device="cpu") as easel, sync_playwright() as playwright:
        easel.load("shapes")
        server = uvicorn.Server(uvicorn.Config(build_app(settings, easel), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 900})
        page.goto(address(listening))
        page.fill("#interval input", str(INTERVAL))
        page.fill("#prompt textarea", SHOWN)
        page.click("#draw")
        page.wait_for_selector(".comparison")
        page.mouse.move(0, 0)
        page.wait_for_timeout(500)
        page.screenshot(path=path, full_page=True)
        figures = page.eval_on_selector_all(
            ".measured tr", "rows => rows.map(row => [...row.cells].map(cell => cell.innerText))"
        )
        browser.close()
        server.should_exit = True
        thread.join()
    # Two hundred colours are enough for a page, and a quarter of the bytes.
    Image.open(path).convert("RGB").quantize(200, dither=Image.Dither.NONE).save(path, optimize=True)
    return {"prompt": SHOWN, "interval": INTERVAL, "figures": [row[:2] for row in figures], **picture(path)}


if __name__ == "__main__":
    main()
