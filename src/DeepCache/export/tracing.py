"""Traces a step with torch.export."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from DeepCache.export.graphs import ShallowGraph, StepGraph

__all__ = ["open_sides", "read_inputs", "size_multiple", "trace"]

_IMAGES = ("sample", "deep_in", "deep_out", "prediction")


def trace(graph: StepGraph, dynamic: bool = False) -> ExportedProgram:
    """The step as a program.

    Args:
        graph: the step.
        dynamic: whether batch, height and width may be others than those of the examples.

    Raises:
        ValueError: torch.export cannot trace the denoiser, or not with these shapes; the message says why.
    """
    batch = len(next(iter(graph.inputs.values())))
    if dynamic and batch == 1:
        raise ValueError(
            "open sizes need an example with two samples or more, since torch.export takes one for fixed: a guidance "
            "scale above 1, or two images"
        )
    sides = (open_sides(name, tensor, batch) for name, tensor in graph.inputs.items())
    shapes = (tuple(dict.fromkeys(each, Dim.DYNAMIC) for each in sides),) if dynamic else None
    with torch.no_grad(), _quiet():
        try:
            return torch.export.export(graph.eval(), tuple(graph.inputs.values()), dynamic_shapes=shapes, strict=False)
        # It raises whatever the code of a denoiser makes of a tensor without values.
        except Exception as error:
            kind = type(graph.unet).__name__
            fix = ". Export with fixed sizes (without --dynamic)" if dynamic else ""
            reason = " ".join(str(error).split())[:400]
            raise ValueError(f"torch.export cannot trace this {kind}: {reason}{fix}") from error


def read_inputs(graph: ShallowGraph, program: ExportedProgram) -> frozenset[str]:
    """The inputs of a shallow step that its program reads: the text is left out where no kept layer attends to it."""
    # Backwards from the outputs: a check of its type reads an input too.
    waiting, read = list(program.graph.find_nodes(op="output")), set()
    while waiting:
        node = waiting.pop()
        if node.name not in read:
            read.add(node.name)
            waiting += node.all_input_nodes
    names = program.graph_signature.user_inputs
    return frozenset(name for name, node in zip(graph.inputs, names, strict=True) if node in read)


def size_multiple(denoiser: nn.Module) -> int:
    """What height and width of a sample must be a multiple of: other sizes take another path through the denoiser,
    which was not traced."""
    return int(2 ** getattr(denoiser, "num_upsamplers", 6))


def open_sides(argument: str, tensor: torch.Tensor, batch: int) -> tuple[int, ...]:
    """The sides of an input or output that batch, height and width decide on, and the length of the text.

    Args:
        argument: the argument of the denoiser that it is.
        tensor: an example.
        batch: the number of samples in the example.
    """
    sides: tuple[int, ...] = (0,) if tensor.ndim and tensor.shape[0] % batch == 0 else ()
    if argument == "encoder_hidden_states":
        sides += (1,)
    if tensor.ndim >= 4 and (argument in _IMAGES or "residual" in argument):
        sides += (tensor.ndim - 2, tensor.ndim - 1)
    return sides


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
