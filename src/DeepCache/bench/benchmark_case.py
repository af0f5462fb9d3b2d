"""Cases of a benchmark: the pipeline alone, with DeepCache, with the reference package, and with fewer steps.

Each case has its own U-Net, which shares the weights with those of the others. So cases can run in turn without
attaching and detaching, and what is compiled for one is not compiled for another.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from DeepCache.bench.reference import reference_helper_class
from DeepCache.bench.variants import Variant
from DeepCache.bench.workload import PipelineCall, UnetLoop
from DeepCache.config import CompileMode
from DeepCache.engine.attach import apply_deepcache
from DeepCache.engine.compilation import Compilation
from DeepCache.engine.stats import TrajectoryStats
from DeepCache.engine.unets import unets_of

__all__ = [
    "BASELINE",
    "CAPTURED",
    "DEEPCACHE",
    "FEWER_STEPS",
    "GRAPHS",
    "MODES",
    "REFERENCE",
    "BenchmarkCase",
    "bytes_of",
    "sharing_weights",
]

BASELINE, DEEPCACHE, REFERENCE, FEWER_STEPS = "no caching", "DeepCache", "reference package", "fewer steps"

MODES: dict[str, CompileMode] = {
    "eager": "none",
    "regional": "regional",
    "compiled": "default",
    "captured": "reduce-overhead",
    "autotuned": "max-autotune",
    "openvino": "none",
    "onnx": "none",
}
"""How the U-Net runs: short names, with the value of `DeepCacheConfig.compile`."""

CAPTURED = ("captured", "autotuned")
"""The modes with CUDA graphs."""

GRAPHS = ("openvino", "onnx")
"""The modes that run exported graphs in another runtime than PyTorch, see `DeepCache.export.use_runtime`."""


class BenchmarkCase:
    """One way to run a pipeline, which can run many times.

    Args:
        pipe: the pipeline. Only the position of its scheduler changes, which all cases share.
        method: `BASELINE`, `DEEPCACHE`, `REFERENCE` or `FEWER_STEPS`.
        call: the pipeline call.
        variant: the settings of DeepCache or of the reference package.
        reference: the path of the reference package.
        unet_only: whether to run only the U-Net calls.
        mode: one of `MODES`. The pipeline already has the graphs of an exported one.
        unets_like: a case whose U-Nets, compiled or not, are used instead of copies.
    """

    def __init__(
        self,
        pipe: Any,
        method: str,
        call: PipelineCall,
        variant: Variant | None = None,
        *,
        reference: Path | None = None,
        unet_only: bool = False,
        mode: str = "eager",
        unets_like: BenchmarkCase | None = None,
    ) -> None:
        self.method = method
        self.variant = variant
        self.call = call
        self.device: torch.device = pipe.device
        self.pipe = copy.copy(pipe)
        self.loop = UnetLoop.of(self.pipe, call)
        self._run = self.loop if unet_only else call
        for name, unet in unets_of(self.pipe).items():
            setattr(self.pipe, name, getattr(unets_like.pipe, name) if unets_like else sharing_weights(unet))
        self._engine = self._helper = None
        self._stats: TrajectoryStats | None = None
        self._broken: Exception | None = None
        if method == DEEPCACHE:
            assert variant is not None
            self._engine = apply_deepcache(self.pipe, replace(variant.config, compile=MODES[mode]))
        elif method == REFERENCE:
            assert variant is not None
            assert reference is not None
            self._helper = reference_helper_class(reference)(pipe=self.pipe)
            config = variant.config
            self._helper.set_params(cache_interval=config.cache_interval, cache_branch_id=config.cache_branch_id)
            try:
                self._helper.enable()
            # It wraps layers that not every U-Net has. The error is raised when the case runs.
            except Exception as error:
                self._broken = error
        if method != DEEPCACHE and unets_like is None:
            for unet in unets_of(self.pipe).values():
                Compilation(unet, MODES[mode]).attach()

    def run(self) -> None:
        """Runs once."""
        if self._broken is not None:
            raise self._broken
        self._run(self.pipe)

    def release(self) -> int:
        """Frees what is kept between steps, and returns its bytes."""
        if self._engine is not None:
            self._engine.end_run()
            return self.stats.bytes_kept if self.stats is not None else 0
        if self._helper is not None:
            kept = bytes_of(self._helper.cached_output.values())
            # The reference package keeps them until it is disabled, as memory of the cases that run next.
            self._helper.cached_output.clear()
            return kept
        return 0

    @property
    def stats(self) -> TrajectoryStats | None:
        """Statistics of the first run with DeepCache. Every run does the same, and counting multiply-accumulates would
        keep the device waiting, so only the first one is counted."""
        if self._engine is not None and self._stats is None:
            stats = self._engine.stats
            self._stats = stats if stats.pattern else None
        return self._stats


def bytes_of(outputs: Iterable[Any]) -> int:
    """Bytes of all distinct tensors in the outputs of layers."""
    found: dict[int, int] = {}
    left = list(outputs)
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            found[id(value)] = value.nbytes
        elif hasattr(value, "to_tuple"):
            left += value.to_tuple()
        elif isinstance(value, (tuple, list)):
            left += value
    return sum(found.values())


def sharing_weights(module: nn.Module) -> nn.Module:
    """A copy of a module with the same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, shared)
