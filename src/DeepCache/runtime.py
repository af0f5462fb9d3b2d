"""What the U-Net of a pipeline runs in, by name: known before anything heavy is imported."""

from __future__ import annotations

from typing import Any

from DeepCache.config import DeepCacheConfig
from DeepCache.extras import require

__all__ = ["RUNTIMES", "branch_for", "check_runtime", "device_for", "runtime_notes"]

RUNTIMES = ("torch", "openvino", "onnx")
"""PyTorch, or graphs in another runtime; see `DeepCache.export.use_runtime`."""


def check_runtime(runtime: str, config: DeepCacheConfig) -> None:
    """Refuses a runtime that is not there, and settings that it cannot run.

    Raises:
        ValueError: there is no such runtime; or the settings use several branches, or compile.
        ImportError: what it takes is not installed.

    Example:
        >>> check_runtime("tensorrt", DeepCacheConfig())
        Traceback (most recent call last):
        ValueError: runtime must be one of torch, openvino, onnx, got 'tensorrt'
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}")
    if runtime == "torch":
        return
    if config.compile != "none":
        raise ValueError(f"compile={config.compile!r} is for PyTorch, and the runtime is {runtime}. Leave one out")
    branch_for(config)
    require(runtime, f"runtime {runtime}")


def branch_for(config: DeepCacheConfig) -> int:
    """The one skip branch at which graphs are cut for these settings.

    Raises:
        ValueError: they use several.
    """
    if len(config.branches) > 1:
        raise ValueError(f"graphs are cut at one skip branch, and the plan uses {', '.join(map(str, config.branches))}")
    return config.branches[0] if config.branches else config.cache_branch_id


def device_for(runtime: str, device: Any) -> Any:
    """The device to load a pipeline on: the CPU for another runtime than PyTorch, where none is asked for."""
    return "cpu" if runtime != "torch" and device in (None, "auto") else device


def runtime_notes(pipe: Any) -> dict[str, str]:
    """What an image's metadata says of the runtime: nothing where that is PyTorch."""
    runtime = getattr(getattr(pipe, "unet", None), "runtime", None)
    return {"runtime": runtime} if isinstance(runtime, str) else {}
