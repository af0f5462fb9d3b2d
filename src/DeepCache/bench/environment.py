"""The environment of a program: versions, devices, and the dtypes that they compute in."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import DeepCache
from DeepCache.bench.provenance import describe_device, describe_machine
from DeepCache.models.device import cpu_support

__all__ = ["describe_environment"]

_PACKAGES = (
    *("torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "safetensors", "huggingface_hub"),
    *("numpy", "torchmetrics", "torchao", "bitsandbytes", "xformers", "triton", "ray", "gradio", "pruna"),
)


def describe_environment() -> dict[str, Any]:
    """What there is, as what JSON can hold: the package and its folder, versions of what is installed beside it, the
    machine, and for each device its name and the dtypes that it computes in.

    Example:
        >>> describe_environment()["devices"]["cpu"].split(":")[0]
        'float32'
    """
    machine = describe_machine()
    return {
        "DeepCache": f"{DeepCache.__version__} in {DeepCache.__path__[0]}",
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        "devices": {"cpu": _cpu_dtypes()} | _accelerators(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_dtypes() -> str:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    return ", ".join(f"{str(dtype).removeprefix('torch.')}: {cpu_support(dtype)}" for dtype in dtypes)


def _accelerators() -> dict[str, str]:
    found = {}
    for index in range(torch.cuda.device_count()):
        device = describe_device(torch.device("cuda", index))
        bfloat16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        found[f"cuda:{index}"] = (
            f"{device['name']}, {device['memory_gib']} GiB, compute capability {device['compute_capability']}, "
            f"CUDA {device['cuda']}, driver {device['driver']}: float32, float16, {bfloat16}"
        )
    if torch.backends.mps.is_available():
        found["mps"] = "float32, float16"
    return found
