"""PyTorch's own format, of torch.export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from DeepCache.export.formats.graph_format import GraphFormat, LoadedGraph

__all__ = ["TorchFormat"]


class TorchFormat(GraphFormat):
    """A `.pt2` file, which torch.export.load reads. It is bound to the version of torch and to the device."""

    name, suffix = "torch", ".pt2"

    def save(
        self, program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str], int8: bool
    ) -> None:
        torch.export.save(program, path)

    def load(self, path: Path, *, provider: str | None = None, dtype: torch.dtype = torch.float32) -> LoadedGraph:
        if provider is not None:
            raise ValueError(f"graphs of torch run on the device that they were exported on, got provider={provider!r}")
        module: Any = torch.export.load(path).module()

        def run(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            with torch.no_grad():
                return list(module(*tensors))

        return run
