"""What a format of graphs has to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.export import ExportedProgram

__all__ = ["GraphFormat", "LoadedGraph"]

LoadedGraph = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]
"""Runs a graph: its inputs in order, its outputs in order. One thread at a time."""


class GraphFormat(ABC):
    """Writes programs in a format and loads them into its runtime.

    Attributes:
        name: its name, as `--format` takes it.
        suffix: that of its files.
        packages: the distributions that it takes beside torch.
        extra: the extra of DeepCache that brings them; None where torch is enough.
        dtypes: what a denoiser may compute in.
        outside: the floating-point type of inputs and outputs; None for that of the denoiser.
        tolerance: the largest difference from PyTorch that an export may have, as a share of the largest value.
        half_tolerance: the same where the denoiser computes in float16 or bfloat16.
        int8_tolerance: the same with weights of eight bits.
    """

    name: str
    suffix: str
    packages: tuple[str, ...] = ("torch",)
    extra: str | None = None
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16)
    outside: torch.dtype | None = None
    tolerance: float = 1e-4
    half_tolerance: float = 0.15
    int8_tolerance: float = 2e-1

    @abstractmethod
    def save(
        self, program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str], int8: bool
    ) -> None:
        """Writes a program.

        Args:
            program: the program.
            path: the file; further files of the same graph lie beside it and begin with its name.
            inputs: names of its inputs.
            outputs: names of its outputs.
            int8: whether weights are kept as whole numbers of eight bits.
        """

    @abstractmethod
    def load(self, path: Path, *, provider: str | None = None, dtype: torch.dtype = torch.float32) -> LoadedGraph:
        """Loads a graph.

        Args:
            path: its file.
            provider: what computes, by the runtime's name for it; the CPU by default.
            dtype: the type that the denoiser computes in.

        Raises:
            ValueError: the runtime has no such provider.
        """
