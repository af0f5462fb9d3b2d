"""Takes the picture of the page that docs/app.md shows.

python -m tests.app.screenshot docs/images/app.png
"""

from __future__ import annotations

import shutil
import sys
import threading

import uvicorn
from PIL import Image
from playwright.sync_api import sync_playwright

from DeepCache.app.easel import Easel
from DeepCache.app.server import AppSettings, address, build_app, listen


def main(path: str) -> None:
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
        page.fill("#interval input", "5")
        page.click("#draw")
        page.wait_for_selector(".comparison")
        page.mouse.move(0, 0)
        page.wait_for_timeout(500)
        page.screenshot(path=path, full_page=True)
        browser.close()
        server.should_exit = True
        thread.join()
    # Two hundred colours are enough for a page, and a quarter of the bytes.
    Image.open(path).convert("RGB").quantize(200, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
