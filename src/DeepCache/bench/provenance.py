"""What a result file says of its origin: command, date, machine, device and versions."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

__all__ = ["describe_device", "describe_machine", "provenance"]

PACKAGES = ("DeepCache", "torch", "diffusers", "transformers", "accelerate", "torchmetrics", "numpy")


def provenance(seed: int) -> dict[str, Any]:
    """Command, date, machine and versions of this run, and its seed."""
    return {
        "command": _command(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "seed": seed,
    }


def describe_machine() -> dict[str, Any]:
    """The processor, its cores, the memory and the system."""
    return {
        "cpu": _from_proc("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cpu_features": sorted({"avx2", "avx512f", "amx_tile"} & set(_from_proc("/proc/cpuinfo", "flags").split())),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def describe_device(device: torch.device) -> dict[str, Any]:
    """What a pipeline runs on: its kind and name, and of a GPU its memory, driver and CUDA version.

    Example:
        >>> describe_device(torch.device("cpu"))["type"]
        'cpu'
    """
    described: dict[str, Any] = {"type": device.type, "name": describe_machine()["cpu"]}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described = {
            "type": device.type,
            "name": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "driver": _driver(),
            "cuda": torch.version.cuda,
        }
    return described


def _command() -> str:
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = Path(sys.argv[0]).name
    if module is not None and module.name not in ("DeepCache.__main__", "__main__"):
        program = f"python -m {module.name}"
    elif program == "__main__.py":
        program = "deepcache"
    elif program.endswith(".py"):
        program = f"python {program}"
    return " ".join([program, shlex.join(sys.argv[1:])]).strip()


def _driver() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
    lines = answer.stdout.split()
    return lines[0] if answer.returncode == 0 and lines else None


def _from_proc(path: str, key: str) -> str:
    if not Path(path).is_file():
        return ""
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _memory_gib() -> float | None:
    kib = _from_proc("/proc/meminfo", "MemTotal").removesuffix("kB").strip()
    return round(int(kib) / 2**20, 1) if kib else None
