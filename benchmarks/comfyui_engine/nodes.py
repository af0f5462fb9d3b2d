"""The nodes, with defaults for the inputs that a test does not set."""

from __future__ import annotations

from typing import Any

from DeepCache.comfyui import NODE_CLASS_MAPPINGS

__all__ = ["pattern", "report", "with_deepcache"]

_SETTINGS = {
    "preset": "custom",
    "interval": 3,
    "branch": 0,
    "between": "shallow",
    "forecast": "none",
    "guidance_reuse": False,
    "adaptive_threshold": 0.0,
    "start_percent": 0.0,
    "end_percent": 1.0,
}


def with_deepcache(patcher: Any, **settings: Any) -> Any:
    """The model that the DeepCache node returns."""
    (changed,) = NODE_CLASS_MAPPINGS["DeepCacheUNet"]().apply(patcher, **_SETTINGS | settings)
    return changed


def report(patcher: Any) -> str:
    """The output of the DeepCache Report node."""
    _, text = NODE_CLASS_MAPPINGS["DeepCacheReport"]().report(patcher, None)["result"]
    return text


def pattern(patcher: Any) -> str:
    """The first line of the report."""
    return report(patcher).splitlines()[0]
