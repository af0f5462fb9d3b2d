"""Origin of a result (command, date, machine, device and versions) and the environment that `deepcache env` shows."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import DeepCache
from DeepCache.models.device import cpu_support

__all__ = ["describe_device", "describe_environment", "describe_machine", "provenance"]

PACKAGES = ("DeepCache", "torch", "diffusers", "transformers", "accelerate", "torchmetrics", "numpy")
_ENVIRONMENT = (
    *("torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "safetensors", "huggingface_hub"),
    *("numpy", "torchmetrics", "torchao", "bitsandbytes", "xformers", "triton", "ray", "gradio", "pruna"),
)


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
    """The processor, its cores, the memory and the operating system."""
    kib = _from_proc("meminfo", "MemTotal").removesuffix("kB").strip()
    return {
        "cpu": _from_proc("cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cpu_features": sorted({"avx2", "avx512f", "amx_tile"} & set(_from_proc("cpuinfo", "flags").split())),
        "cores": os.cpu_count(),
        "memory_gib": round(int(kib) / 2**20, 1) if kib else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def describe_device(device: torch.device) -> dict[str, Any]:
    """The type and name of a device; of a GPU also its memory, driver and CUDA version."""
    if device.type != "cuda":
        return {"type": device.type, "name": describe_machine()["cpu"]}
    properties = torch.cuda.get_device_properties(device)
    return {
        "type": device.type,
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": _driver(),
        "cuda": torch.version.cuda,
    }


def describe_environment() -> dict[str, Any]:
    """The package and its folder, versions of related packages, the machine, and the dtypes of each device."""
    machine = describe_machine()
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    devices = {"cpu": ", ".join(f"{str(each).removeprefix('torch.')}: {cpu_support(each)}" for each in dtypes)}
    for index in range(torch.cuda.device_count()):
        device = describe_device(torch.device("cuda", index))
        bfloat16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        devices[f"cuda:{index}"] = (
            f"{device['name']}, {device['memory_gib']} GiB, compute capability {device['compute_capability']}, "
            f"CUDA {device['cuda']}, driver {device['driver']}: float32, float16, {bfloat16}"
        )
    if torch.backends.mps.is_available():
        devices["mps"] = "float32, float16"
    return {
        "DeepCache": f"{DeepCache.__version__} in {DeepCache.__path__[0]}",
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "packages": {name: found for name in _ENVIRONMENT if (found := _version(name))},
        "machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        "devices": devices,
    }


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
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(answer.stdout.split()), None)


def _from_proc(file: str, key: str) -> str:
    path = Path("/proc", file)
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
