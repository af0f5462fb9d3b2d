"""Hashes of programs, calls and files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from DeepCache.export.call import Constant

__all__ = ["call_signature", "file_hash", "program_hash", "versions_of"]


def program_hash(program: ExportedProgram) -> str:
    """A hash of the operations of a traced program, the shapes and dtypes of its inputs, and all weights and constants.

    Everything that changes the output changes the hash: adapters, FreeU, attention processors, hooks, patched code.
    """
    digest = hashlib.sha256()
    for name, module in program.graph_module.named_modules():
        if isinstance(module, GraphModule):
            digest.update(f"{name}\n{module.code}\n".encode())
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            digest.update(f"{node.name} {value.dtype} {tuple(value.shape)}\n".encode())
    for name, tensor in _read_tensors(program):
        data = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(data.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_tensors(program: ExportedProgram) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights, buffers and constants that any operation reads, by input name."""
    signature, tensors = program.graph_signature, {**program.state_dict, **program.constants}
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    for node in program.graph.find_nodes(op="placeholder"):
        if node.name in names and node.users:
            tensor = tensors[names[node.name]]
            assert isinstance(tensor, torch.Tensor)
            yield node.name, tensor


def call_signature(tensors: dict[str, torch.Tensor], constants: dict[str, Constant]) -> str:
    """A hash of the shapes, dtypes and constants of a call."""
    shapes = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()}
    return hashlib.sha256(json.dumps([shapes, constants]).encode()).hexdigest()


def file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def versions_of(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in ("DeepCache", "diffusers", *packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
