"""Runs the example workflow in ComfyUI's page with the bundled model: makes the screenshots of docs/comfyui.md, the
example's thumbnail, and the image that holds the workflow in its metadata.

It needs the packages of ComfyUI's server and page, playwright and Chromium. `COMFYUI_PATH` names a checkout.

    COMFYUI_PATH=../ComfyUI python -m benchmarks.comfyui_screenshots
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Page, sync_playwright

from benchmarks.comfyui_engine.example_workflow import FOLDER, as_prompt, node_of, read, with_bundled_model
from benchmarks.comfyui_engine.server import Server

IMAGES = Path(__file__).parents[1] / "docs" / "images"
UPSCALED = 512
MARGIN = 30
# Panels of the page that are not about the nodes.
SETTINGS = {
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.TutorialCompleted": True,
}


def main() -> None:
    with TemporaryDirectory() as folder, Server(Path(folder)) as server:
        _write_example(server)
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1300, "height": 900})
            _open(page, server.address)
            _take_workflow(page)
            _take_node(page)
            browser.close()


def _write_example(server: Server) -> None:
    """The image of the example, with the workflow in its metadata as *Save Image* writes it, and the thumbnail."""
    prompt = as_prompt(with_bundled_model(read()))
    generated = Image.open(io.BytesIO(server.image(server.run(prompt), node_of(prompt, "SaveImage"))))
    metadata = PngInfo()
    metadata.add_text("prompt", json.dumps(as_prompt(read())))
    metadata.add_text("workflow", json.dumps(read()))
    image = generated.resize((UPSCALED, UPSCALED), Image.Resampling.BICUBIC)
    image.save(FOLDER / "deepcache.png", pnginfo=metadata, optimize=True)
    image.save(FOLDER / "deepcache.jpg", quality=90)


def _open(page: Page, address: str) -> None:
    for name, value in SETTINGS.items():
        page.request.post(f"{address}/api/settings/{name}", data=json.dumps(value))
    page.goto(address)
    page.wait_for_function("!!window.app?.graph && 'DeepCacheUNet' in window.LiteGraph.registered_node_types")
    # What the page opens by itself comes late.
    page.wait_for_timeout(3000)
    page.evaluate("app.extensionManager.command.execute('Workspace.ToggleFocusMode')")


def _take_workflow(page: Page) -> None:
    workflow = with_bundled_model(read())
    for node in workflow["nodes"]:
        if node["type"] == "SaveImage":
            node["size"] = [node["size"][0], 190]
    page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
    page.evaluate("app.queuePrompt(0)")
    page.wait_for_function("app.graph._nodes.some(node => node.type === 'SaveImage' && node.imgs?.length)")
    _shoot(page, "comfyui-workflow.png")


def _take_node(page: Page) -> None:
    """The node alone, with the tooltip of an input."""
    page.evaluate(
        """() => {
            app.graph.clear();
            const node = LiteGraph.createNode("DeepCacheUNet");
            app.graph.add(node);
            node.setSize([270, node.size[1]]);
        }"""
    )
    x, y = _look_at(page)
    page.mouse.move(x + 255, y + 132)
    page.locator(".node-tooltip").wait_for()
    _shoot(page, "comfyui-node.png", width=740)


def _look_at(page: Page) -> tuple[int, int]:
    """Moves all nodes into the corner of the page, in their full size, and returns where the first of them begins."""
    left, top = page.evaluate(
        "[0, 1].map(axis => Math.min(...app.graph._nodes.map(node => node.pos[axis])))",
    )
    # Above a node are its title and the name of its pack.
    corner = MARGIN, MARGIN + 50
    page.evaluate(
        "([x, y]) => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [x, y]; app.canvas.setDirty(true, true); }",
        [corner[0] - left, corner[1] - top],
    )
    page.wait_for_timeout(1000)
    return corner


def _shoot(page: Page, name: str, width: int | None = None) -> None:
    corner = _look_at(page) if width is None else (MARGIN, MARGIN + 50)
    right, bottom = page.evaluate(
        """() => [0, 1].map(axis => Math.max(...app.graph._nodes.map(node => node.pos[axis] + node.size[axis]))
            - Math.min(...app.graph._nodes.map(node => node.pos[axis])))"""
    )
    clip = {"x": 0, "y": 0, "width": width or corner[0] + right + MARGIN, "height": corner[1] + bottom + MARGIN}
    taken = Image.open(io.BytesIO(page.screenshot(clip=clip)))
    taken.convert("RGB").save(IMAGES / name, optimize=True)


if __name__ == "__main__":
    main()
