"""What differs between the releases of torch that DeepCache works with."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import nn

__all__ = ["ALWAYS_CALLED", "CALLS_WHAT_IS_COMPILED", "bytes_of", "not_compiled"]

# Torch 2.0 has none of these.
CALLS_WHAT_IS_COMPILED = hasattr(nn.Module, "_compiled_call_impl")
"""Whether `nn.Module.__call__` runs what stands in `_compiled_call_impl` in place of the module."""

ALWAYS_CALLED: dict[str, Any] = (
    {"always_call": True} if "always_call" in signature(nn.Module.register_forward_hook).parameters else {}
)
"""What registers a forward hook that is called after an exception too; there the guard of the call does without."""


def not_compiled(function: Callable[..., Any], recursive: bool = True) -> Any:
    """`torch.compiler.disable`; torch 2.0, where DeepCache refuses to be compiled, has none."""
    if not hasattr(torch, "compiler"):
        return function
    return torch.compiler.disable(function, recursive=recursive)  # type: ignore[no-untyped-call]


def bytes_of(tensor: torch.Tensor) -> int:
    """`Tensor.nbytes`, which torch 2.0 has for arrays of NumPy alone."""
    return tensor.numel() * tensor.element_size()
