"""Time and memory of one run."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch

from DeepCache.models.device import wait_for_device

__all__ = ["Timing", "is_out_of_memory", "release_memory", "timed"]


@dataclass(frozen=True)
class Timing:
    """The seconds of a run, and the peak of PyTorch's memory on a CUDA device in bytes (None elsewhere)."""

    seconds: float
    peak_memory: int | None


def timed(run: Callable[[], None], device: torch.device) -> Timing:
    """Runs and measures until the device is done; with CUDA events on a CUDA device."""
    wait_for_device(device)
    if device.type != "cuda":
        begin = perf_counter()
        run()
        wait_for_device(device)
        return Timing(perf_counter() - begin, None)
    torch.cuda.reset_peak_memory_stats(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    with torch.cuda.device(device):
        start.record()
        run()
        end.record()
    wait_for_device(device)
    return Timing(start.elapsed_time(end) / 1000, torch.cuda.max_memory_allocated(device))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the CPU ran out of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "allocate memory" in text)


def release_memory() -> None:
    """Frees what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
