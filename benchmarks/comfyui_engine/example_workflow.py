"""The example workflow, in the format of ComfyUI's page and in that of its server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "as_prompt", "node_of", "read", "with_bundled_model"]

FOLDER = Path(__file__).parents[2] / "example_workflows"


def read() -> dict[str, Any]:
    """The workflow."""
    return json.loads((FOLDER / "deepcache.json").read_text(encoding="utf-8"))


def as_prompt(workflow: dict[str, Any]) -> dict[str, Any]:
    """A workflow in the format of the server's `/prompt`: classes and inputs, without places and sizes."""
    origins = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        values, inputs = iter(node.get("widgets_values", [])), {}
        for each in node["inputs"]:
            name = each["name"]
            if "widget" in each:
                inputs[name] = next(values)
            if name == "seed":
                next(values)  # The page's rule for the next seed.
            if each["link"] is not None:
                inputs[name] = origins[each["link"]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def node_of(prompt: dict[str, Any], kind: str) -> str:
    """The id of the only node of a class."""
    (number,) = [number for number, node in prompt.items() if node["class_type"] == kind]
    return number


def with_bundled_model(workflow: dict[str, Any]) -> dict[str, Any]:
    """The workflow with the bundled model instead of a checkpoint, and a latent of its size."""
    changed = json.loads(json.dumps(workflow))
    for node in changed["nodes"]:
        if node["type"] == "CheckpointLoaderSimple":
            node |= {"type": "DeepCacheBundledModel", "inputs": [], "widgets_values": [], "properties": {}}
        if node["type"] == "EmptyLatentImage":
            # ComfyUI divides these by 8; the model's autoencoder multiplies by 4.
            node["widgets_values"] = [128, 128, 1]
    return changed
