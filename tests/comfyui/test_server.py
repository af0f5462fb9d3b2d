"""The example workflow in ComfyUI's own server, with the bundled model: set `COMFYUI_PATH` to a checkout."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import os
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.comfyui_engine.example_workflow import as_prompt, node_of, read, with_bundled_model
from benchmarks.comfyui_engine.server import Server
from DeepCache.comfyui import NODE_CLASS_MAPPINGS
from DeepCache.plan import Plan
from DeepCache.schedule import Step, StepSchedule

if not os.environ.get("COMFYUI_PATH"):
    pytest.skip("COMFYUI_PATH names no checkout of ComfyUI", allow_module_level=True)
for package in ("aiohttp", "alembic", "einops", "psutil", "pydantic_settings", "sqlalchemy", "torchsde", "yaml"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"ComfyUI's server needs {package}, which is not installed", allow_module_level=True)

PROMPT = as_prompt(with_bundled_model(read()))
LOADER, DEEPCACHE, SAMPLER, REPORT, PREVIEW, SAVE = (
    node_of(PROMPT, kind)
    for kind in ("DeepCacheBundledModel", "DeepCacheUNet", "KSampler", "DeepCacheReport", "PreviewAny", "SaveImage")
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comfyui")
    # It serves the API only and does not need the package of the page.
    (folder / "page").mkdir()
    with Server(folder, "--front-end-root", str(folder / "page")) as server:
        yield server


def changed(**inputs: Any) -> dict[str, Any]:
    """The example with other DeepCache settings."""
    prompt = copy.deepcopy(PROMPT)
    prompt[DEEPCACHE]["inputs"] |= inputs
    return prompt


def without_deepcache() -> dict[str, Any]:
    """The example with the node bypassed."""
    prompt = copy.deepcopy(PROMPT)
    del prompt[DEEPCACHE]
    for node in (SAMPLER, REPORT):
        prompt[node]["inputs"]["model"] = [LOADER, 0]
    return prompt


def run(server: Server, prompt: dict[str, Any]) -> tuple[np.ndarray, str]:
    """The image, and the text in *Preview as Text*."""
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "success", server.log
    image = Image.open(io.BytesIO(server.image(entry, SAVE)))
    (text,) = entry["outputs"][PREVIEW]["text"]
    assert entry["outputs"][REPORT]["text"] == [text]
    return np.asarray(image).astype(float) / 255, text


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return -10 * np.log10(((one - other) ** 2).mean())


@pytest.fixture(scope="module")
def plain(server):
    image, text = run(server, without_deepcache())
    assert text.startswith("DeepCache is not on this model")
    assert image.shape == (64, 64, 3)
    assert image.std() > 0.1
    return image


def test_interval_one_is_exact(server, plain):
    image, text = run(server, changed(preset="custom", interval=1))
    assert np.array_equal(image, plain)
    assert text.splitlines()[0] == "F" * 20


def test_the_example_is_close(server, plain):
    image, text = run(server, PROMPT)
    assert text.splitlines()[0] == "F--F--F--F--F--F--F-"
    assert "7 full, 0 shallow and 13 skipped steps" in text
    assert "35.0%" in text
    # Measured: 31.8 dB.
    assert 28 < psnr(image, plain) < 50


def test_wrong_setting_is_reported(server):
    entry = server.run(changed(preset="custom", branch=99))
    assert entry["status"]["status_str"] == "error"
    (error,) = [message for kind, message in entry["status"]["messages"] if kind == "execution_error"]
    assert error["node_type"] == "DeepCacheUNet"
    # Newer servers put the type before it.
    message = error["exception_message"].strip().removeprefix("ValueError: ")
    assert message == "DeepCache: branch must be between 0 and 11 for this model, got 99"


def test_changed_plan_file_is_reloaded(server, tmp_path):
    path = tmp_path / "plan.json"
    for full in (5, 4):
        steps = tuple(Step(number % full == 0) for number in range(20))
        Plan(StepSchedule(steps), model={}, scheduler={}).to_file(path)
        _, text = run(server, changed(plan=str(path)))
        assert text.splitlines()[0] == ("F" + "." * (full - 1)) * (20 // full)


def test_page_lists_the_example(server):
    assert json.loads(server.get("/workflow_templates"))["deepcache"] == ["deepcache"]
    assert json.loads(server.get("/api/workflow_templates/deepcache/deepcache.json")) == read()
    thumbnail = Image.open(io.BytesIO(server.get("/api/workflow_templates/deepcache/deepcache.jpg")))
    assert thumbnail.format == "JPEG"


@pytest.mark.parametrize("name", NODE_CLASS_MAPPINGS)
def test_every_input_and_output_has_a_tooltip(server, name):
    found = json.loads(server.get(f"/object_info/{name}"))[name]
    inputs = {key: value for part in found["input"].values() for key, value in part.items()}
    assert all(options["tooltip"] for _, options in inputs.values())
    assert len(found["output_tooltips"]) == len(found["output"])
    assert found["description"]
