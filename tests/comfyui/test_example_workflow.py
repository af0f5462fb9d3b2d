"""The example workflow and its files match the nodes."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from benchmarks.comfyui_engine.example_workflow import FOLDER, as_prompt, node_of, read
from DeepCache.comfyui import NODE_CLASS_MAPPINGS


@pytest.mark.parametrize("kind", NODE_CLASS_MAPPINGS)
def test_inputs_match_the_node(kind):
    prompt = as_prompt(read())
    inputs = prompt[node_of(prompt, kind)]["inputs"]
    known = {name: each for part in NODE_CLASS_MAPPINGS[kind].INPUT_TYPES().values() for name, each in part.items()}
    assert list(inputs) == list(known)
    values = {name: value for name, value in inputs.items() if not isinstance(value, list)}
    # The example shows the defaults.
    assert values == {name: known[name][1]["default"] for name in values}


def test_image_contains_the_workflow():
    with Image.open(FOLDER / "deepcache.png") as image:
        assert json.loads(image.info["workflow"]) == read()
        assert json.loads(image.info["prompt"]) == as_prompt(read())


def test_thumbnail_exists():
    with Image.open(FOLDER / "deepcache.jpg") as image:
        assert image.format == "JPEG"
