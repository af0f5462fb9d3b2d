"""Traces a step with `torch.export`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from DeepCache.errors import GraphError
from DeepCache.export.graphs import ShallowGraph, StepGraph

__all__ = ["merged_adapters", "open_sides", "read_inputs", "size_multiple", "trace"]

_IMAGES = ("sample", "deep_in", "deep_out", "prediction")


def trace(graph: StepGraph, dynamic: bool = False) -> ExportedProgram:
    """Traces a step; with `dynamic`, for any batch, height and width."""
    batch = len(next(iter(graph.inputs.values())))
    if dynamic and batch == 1:
        raise GraphError(
            "dynamic sizes require an example with two samples or more, since torch.export specializes on one. Use a "
            "guidance scale above 1, or two images"
        )
    sides = (open_sides(name, tensor, batch) for name, tensor in graph.inputs.items())
    shapes = (tuple(dict.fromkeys(each, Dim.DYNAMIC) for each in sides),) if dynamic else None
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch.no_grad():
            return torch.export.export(graph.eval(), tuple(graph.inputs.values()), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # of any type, from the code of the denoiser
        kind = type(graph.unet).__name__
        fix = ". Export with fixed sizes (without --dynamic)" if dynamic else ""
        reason = " ".join(str(error).split())[:400]
        raise GraphError(f"torch.export cannot trace this {kind}: {reason}{fix}") from error
    finally:
        logger.setLevel(level)


def read_inputs(graph: ShallowGraph, program: ExportedProgram) -> frozenset[str]:
    """The inputs that the program of a shallow step reads; the text is not, if no kept layer attends to it."""
    # Backwards from the outputs, since type checks read inputs too.
    waiting, read = list(program.graph.find_nodes(op="output")), set()
    while waiting:
        node = waiting.pop()
        if node.name not in read:
            read.add(node.name)
            waiting += node.all_input_nodes
    names = program.graph_signature.user_inputs
    return frozenset(name for name, node in zip(graph.inputs, names, strict=True) if node in read)


def size_multiple(denoiser: nn.Module) -> int:
    """The number that divides height and width of a sample. Other sizes use an untraced path."""
    return int(2 ** getattr(denoiser, "num_upsamplers", 6))


def open_sides(argument: str, tensor: torch.Tensor, batch: int) -> tuple[int, ...]:
    """The dimensions of an input or output that depend on batch, height, width or the length of the text."""
    sides: tuple[int, ...] = (0,) if tensor.ndim and tensor.shape[0] % batch == 0 else ()
    if argument == "encoder_hidden_states":
        sides += (1,)
    if tensor.ndim >= 4 and (argument in _IMAGES or "residual" in argument):
        sides += (tensor.ndim - 2, tensor.ndim - 1)
    return sides


@contextmanager
def merged_adapters(denoiser: nn.Module) -> Iterator[list[str]]:
    """Merges active PEFT adapters into the weights, yields their names, and restores all weights exactly."""
    layers: list[Any] = [module for module in denoiser.modules() if _has_active_adapters(module)]
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


def _has_active_adapters(module: Any) -> bool:
    return (
        hasattr(module, "merge")
        and hasattr(module, "get_base_layer")
        and bool(module.active_adapters)
        and not module.disable_adapters
        and not module.merged
    )
