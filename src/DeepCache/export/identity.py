"""Tells whether two denoisers compute the same: a hash of everything that a graph is made of."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from DeepCache.engine.cost_key import stable_structure_key

__all__ = ["call_signature", "model_hash", "versions_of"]


def model_hash(denoiser: nn.Module) -> str:
    """A hash of the structure and settings of a denoiser, of its adapters, and of every value of its weights.

    Raises:
        ValueError: weights are out of reach (offloaded or quantised).
    """
    digest = hashlib.sha256(stable_structure_key(denoiser).encode())
    for name, module in denoiser.named_modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            kind = hook if hasattr(hook, "__qualname__") else type(hook)
            digest.update(f"{name} {kind.__module__}.{kind.__qualname__}".encode())
    for name, tensor in sorted({**dict(denoiser.named_parameters()), **dict(denoiser.named_buffers())}.items()):
        if tensor.device.type == "meta" or type(tensor.data) is not torch.Tensor:
            raise ValueError(
                f"the graphs hold the weights of the denoiser, and {name!r} is offloaded or quantised. Load the "
                "pipeline without offloading and quantisation"
            )
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
        if data.numel():
            digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def call_signature(tensors: dict[str, torch.Tensor], constants: dict[str, Any]) -> str:
    """A hash of what a graph for fixed sizes depends on in a call."""
    shapes = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()}
    return hashlib.sha256(json.dumps([shapes, constants]).encode()).hexdigest()


def versions_of(packages: tuple[str, ...]) -> dict[str, str]:
    """The versions of what makes a graph."""
    found = {}
    for name in ("DeepCache", "diffusers", *packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
