"""Adapters (LoRA and the like of PEFT) added into the weights for as long as a denoiser is traced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["merged_adapters"]


@contextmanager
def merged_adapters(denoiser: nn.Module) -> Iterator[list[str]]:
    """Adds the active adapters into the weights beside them. Afterwards all weights are what they were, to the last
    bit.

    Yields:
        The names of the adapters that are active.
    """
    layers: list[Any] = [module for module in denoiser.modules() if _is_adapted(module)]
    names = sorted({name for layer in layers for name in layer.active_adapters})
    kept: list[tuple[nn.Parameter, torch.Tensor, Any]] = []
    try:
        for layer in layers:
            base = layer.get_base_layer()
            kept += [(weight, weight.data, layer) for weight in base.parameters()]
            for weight in base.parameters():
                weight.data = weight.data.clone()
            layer.merge()
        yield names
    finally:
        for weight, data, layer in kept:
            weight.data = data
            layer.merged_adapters.clear()


def _is_adapted(module: Any) -> bool:
    """Whether PEFT has put adapters beside this layer that are active and not merged."""
    return (
        hasattr(module, "merge")
        and hasattr(module, "get_base_layer")
        and bool(module.active_adapters)
        and not module.disable_adapters
        and not module.merged
    )
