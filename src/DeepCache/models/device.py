"""The device of a pipeline and the dtype of its weights."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

__all__ = ["cpu_support", "execution_device", "resolve_device", "resolve_dtype", "wait_for_device", "warn_of_emulation"]

_DTYPES = {name: name for name in ("float32", "float16", "bfloat16")}
_DTYPES |= {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
_DEVICES = ("cpu", "cuda", "mps", "xpu")
# Private functions of PyTorch, which a release may not have.
_ONEDNN_CHECKS = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}
_AMX_CHECKS = {"bfloat16": "_is_amx_tile_supported", "float16": "_is_amx_fp16_supported"}


def resolve_device(device: torch.device | str | None = None) -> torch.device:
    """The device of that name, or the best available one.

    Args:
        device: a device or its name; None or `"auto"` for the first available of CUDA, MPS and the CPU.

    Raises:
        ValueError: the name is not that of a device, or the device is not available.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    import torch

    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in _DEVICES:
        raise ValueError(
            f"device must be auto, {', '.join(_DEVICES)} or one with a number such as cuda:1, got {str(device)!r}"
        )
    present = {
        "cpu": lambda: 1,
        "cuda": torch.cuda.device_count,
        "mps": lambda: int(torch.backends.mps.is_available()),
        "xpu": torch.xpu.device_count,
    }[found.type]()
    if present == 0:
        raise ValueError(f"device {str(device)!r} is not available: PyTorch finds no {found.type}. Use auto or cpu")
    if (found.index or 0) >= present:
        last = f" to {found.type}:{present - 1}" if present > 1 else ""
        raise ValueError(f"device {str(device)!r} is not available: there is only {found.type}:0{last}")
    return found


def resolve_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """The dtype of that name. By default `float16` on a GPU with CUDA and `float32` elsewhere, on every CPU, so that an
    image does not depend on the processor."""
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None or dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    name = _DTYPES.get(dtype.lower().removeprefix("torch."))
    if name is None:
        raise ValueError(f"dtype must be auto, float32, float16 or bfloat16, got {dtype!r}")
    found: torch.dtype = getattr(torch, name)
    return found


def cpu_support(dtype: torch.dtype) -> Literal["native", "native (AMX)", "emulated"]:
    """The support of a dtype by this processor: `"native"` if oneDNN, which computes convolutions and linear layers in
    PyTorch, uses instructions for the dtype; `"native (AMX)"` if these are Intel's matrix instructions, which make the
    dtype several times faster than `float32`; `"emulated"` if every value is converted to `float32` and back."""
    import torch

    name = str(dtype).removeprefix("torch.")
    if name not in _ONEDNN_CHECKS:
        return "native"
    # Without oneDNN's support, PyTorch's own loops compute convolutions.
    if not _supports(torch.ops.mkldnn, _ONEDNN_CHECKS[name]):
        return "emulated"
    if _supports(torch.cpu, _AMX_CHECKS[name]):
        return "native (AMX)"
    # oneDNN accepts bfloat16 on every processor with AVX-512, and converts it on those without instructions for it.
    # Other processors on which it accepts bfloat16 have them.
    converted = (
        dtype is torch.bfloat16
        and _supports(torch.cpu, "_is_avx512_supported")
        and not _supports(torch.cpu, "_is_avx512_bf16_supported", if_unknown=True)
    )
    return "emulated" if converted else "native"


def warn_of_emulation(dtype: torch.dtype, device: torch.device) -> None:
    """Warns, at the call of the calling function, if the device is the CPU and emulates the dtype."""
    if device.type == "cpu" and cpu_support(dtype) == "emulated":
        name = str(dtype).removeprefix("torch.")
        warnings.warn(
            f"{name} has no native support on this CPU: convolutions are many times slower than in float32. "
            "Use float32.",
            UserWarning,
            stacklevel=3,
        )


def execution_device(pipe: Any) -> torch.device:
    """The device that a pipeline computes on, which differs from `pipe.device` if its weights are offloaded."""
    found: torch.device = getattr(pipe, "_execution_device", None) or pipe.device
    return found


def wait_for_device(device: torch.device) -> None:
    """Waits until the device has finished its work, before a time measurement."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _supports(module: object, check: str, *, if_unknown: bool = False) -> bool:
    found = getattr(module, check, None)
    return if_unknown if found is None else bool(found())
