"""Installs the nodes into ComfyUI."""

from __future__ import annotations

import shutil
from pathlib import Path

import DeepCache

__all__ = ["install_nodes"]

# The modules that the nodes import. They require torch only.
_PARTS = (
    "__init__.py",
    "comfyui",
    "config.py",
    "engine",
    "errors.py",
    "files.py",
    "plan.py",
    "py.typed",
    "schedule.py",
    "text.py",
)
# The folder in which ComfyUI looks for the workflows of a node pack. A wheel has it in `comfyui`.
_WORKFLOWS = "example_workflows"


def install_nodes(comfyui: Path) -> Path:
    """Copies the nodes, the engine and the example workflow into `custom_nodes/deepcache`, replacing an earlier copy.

    Args:
        comfyui: the ComfyUI directory.

    Returns:
        The new directory.

    Raises:
        ValueError: it is not a ComfyUI directory, or `custom_nodes/deepcache` is something else.
        OSError: it cannot be written.
    """
    nodes = comfyui / "custom_nodes"
    if not nodes.is_dir():
        raise ValueError(f"{str(comfyui)!r} is not a ComfyUI directory: it has no custom_nodes")
    target = nodes / "deepcache"
    if target.exists() and not (target / "DeepCache" / "comfyui").is_dir():
        raise ValueError(f"{str(target)!r} exists and is not a copy of the DeepCache nodes. Move it first")
    package = Path(DeepCache.__file__).parent
    beside = nodes / "deepcache.new.disabled"
    shutil.rmtree(beside, ignore_errors=True)
    without = shutil.ignore_patterns("__pycache__")
    for part in _PARTS:
        source, copy = package / part, beside / "DeepCache" / part
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=without)
        else:
            shutil.copyfile(source, copy)
    shutil.copyfile(Path(__file__).with_name("loaded_by_comfyui.py"), beside / "__init__.py")
    workflows = beside / "DeepCache" / "comfyui" / _WORKFLOWS
    if workflows.is_dir():
        workflows.rename(beside / _WORKFLOWS)
    else:
        shutil.copytree(package.parents[1] / _WORKFLOWS, beside / _WORKFLOWS)
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)
    return target
