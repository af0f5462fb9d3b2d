"""Checks of runtimes that import no heavy package."""

from __future__ import annotations

from typing import Any

from DeepCache.config import DeepCacheConfig
from DeepCache.extras import require

__all__ = ["RUNTIMES", "branch_for", "check_runtime", "device_for", "runtime_notes"]

RUNTIMES = ("torch", "openvino", "onnx")
"""PyTorch, and runtimes of graphs; see `DeepCache.export.use_runtime`."""


def check_runtime(runtime: str, config: DeepCacheConfig) -> None:
    """Checks that a runtime is installed and supports the settings.

    Raises:
        ValueError: the runtime is unknown, or the settings use several branches or `compile`.
        ImportError: the packages of the runtime are not installed.

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
        raise ValueError(f"compile={config.compile!r} requires runtime torch, got {runtime!r}. Remove one of them")
    branch_for(config)
    require(runtime, f"runtime {runtime}")


def branch_for(config: DeepCacheConfig) -> int:
    """The skip branch at which graphs are cut.

    Raises:
        ValueError: the settings use several branches.
    """
    if len(config.branches) > 1:
        raise ValueError(f"graphs have one skip branch, but the plan uses {', '.join(map(str, config.branches))}")
    return config.branches[0] if config.branches else config.cache_branch_id


def device_for(runtime: str, device: Any) -> Any:
    """The device to load a pipeline on: the CPU by default for runtimes other than PyTorch."""
    return "cpu" if runtime != "torch" and device in (None, "auto") else device


def runtime_notes(pipe: Any) -> dict[str, str]:
    """The runtime as image metadata; empty for PyTorch."""
    runtime = getattr(getattr(pipe, "unet", None), "runtime", None)
    return {"runtime": runtime} if isinstance(runtime, str) else {}
