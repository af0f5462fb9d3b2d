"""The device that a pipeline runs on, and the type of its weights."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

__all__ = ["cpu_support", "execution_device", "resolve_device", "resolve_dtype", "wait_for_device", "warn_of_emulation"]

_DTYPES = {
    "float32": "float32",
    "fp32": "float32",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
}
_DEVICES = ("cpu", "cuda", "mps", "xpu")
# Private functions of PyTorch, which a release may lack.
_ONEDNN_CHECKS = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}
_AMX_CHECKS = {"bfloat16": "_is_amx_tile_supported", "float16": "_is_amx_fp16_supported"}


def resolve_device(device: torch.device | str | None = None) -> torch.device:
    """The device of that name, or the best there is.

    Args:
        device: a device or its name; None or `"auto"` for the first of CUDA, MPS and the CPU.

    Raises:
        ValueError: the name is that of no device, or the machine has none of that kind.

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
        raise ValueError(
            f"device {str(device)!r} was asked for, but PyTorch finds no such device in this machine; use auto or cpu"
        )
    if (found.index or 0) >= present:
        raise ValueError(
            f"device {str(device)!r} was asked for, but there is only {found.type}:0"
            + (f" to {found.type}:{present - 1}" if present > 1 else "")
        )
    return found


def resolve_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """The dtype of that name, or what suits the device.

    Args:
        dtype: a dtype or its name; None or `"auto"` for `float16` on a GPU with CUDA and `float32` elsewhere, on every
            CPU, so that an image does not depend on the kind of processor.
        device: the device that it is for.

    Raises:
        ValueError: the name is that of no dtype that a pipeline runs in.

    Example:
        >>> import torch
        >>> resolve_dtype("bf16", torch.device("cpu"))
        torch.bfloat16
    """
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
    """How this processor computes in a dtype.

    Returns:
        `"native"` where it has instructions for the dtype and oneDNN, which computes convolutions and linear layers in
        PyTorch, uses them; `"native (AMX)"` where these are Intel's matrix instructions, which make the dtype several
        times faster than `float32`; `"emulated"` where every value is converted to `float32` and back.

    Example:
        >>> import torch
        >>> cpu_support(torch.float32)
        'native'
    """
    import torch

    name = str(dtype).removeprefix("torch.")
    if name not in _ONEDNN_CHECKS:
        return "native"
    # Without oneDNN, or where it lacks the dtype, PyTorch's own loops compute convolutions.
    if not _says_yes(torch.ops.mkldnn, _ONEDNN_CHECKS[name]):
        return "emulated"
    if _says_yes(torch.cpu, _AMX_CHECKS[name]):
        return "native (AMX)"
    # oneDNN takes bfloat16 on every processor with AVX-512, and converts it where the instructions for it are missing.
    # Other processors that it takes bfloat16 on have them.
    converted = (
        dtype is torch.bfloat16
        and _says_yes(torch.cpu, "_is_avx512_supported")
        and not _says_yes(torch.cpu, "_is_avx512_bf16_supported", if_unknown=True)
    )
    return "emulated" if converted else "native"


def warn_of_emulation(dtype: torch.dtype, device: torch.device) -> None:
    """Warns where the device is the CPU and this processor emulates the dtype; see `cpu_support`.

    The warning names the place that the caller was called from.
    """
    if device.type == "cpu" and cpu_support(dtype) == "emulated":
        name = str(dtype).removeprefix("torch.")
        warnings.warn(
            f"{name} has no native support on this CPU: convolutions are many times slower than in float32. "
            "Use float32.",
            UserWarning,
            stacklevel=3,
        )


def execution_device(pipe: Any) -> torch.device:
    """The device that a pipeline computes on. Where its weights are offloaded, `pipe.device` is that of the weights."""
    found: torch.device = getattr(pipe, "_execution_device", None) or pipe.device
    return found


def wait_for_device(device: torch.device) -> None:
    """Returns when the device has done all it was given, so that a clock shows the truth."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _says_yes(module: object, check: str, *, if_unknown: bool = False) -> bool:
    found = getattr(module, check, None)
    return if_unknown if found is None else bool(found())
