"""Differences between the supported releases of torch."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import nn

# Torch 2.0 has neither of the two.
CALLS_WHAT_IS_COMPILED = hasattr(nn.Module, "_compiled_call_impl")
"""Whether `nn.Module.__call__` runs `_compiled_call_impl` instead of the module."""

ALWAYS_CALLED: dict[str, Any] = (
    {"always_call": True} if "always_call" in signature(nn.Module.register_forward_hook).parameters else {}
)
"""Arguments that register a forward hook to be called after an exception too. Without them the call guard suffices."""


def not_compiled(function: Callable[..., Any], recursive: bool = True) -> Any:
    """`torch.compiler.disable`, which torch 2.0 lacks; there DeepCache refuses to be compiled."""
    if not hasattr(torch, "compiler"):
        return function
    return torch.compiler.disable(function, recursive=recursive)  # type: ignore[no-untyped-call]


def bytes_of(tensor: torch.Tensor) -> int:
    """`Tensor.nbytes`, which torch 2.0 lacks."""
    return tensor.numel() * tensor.element_size()
