"""Who runs in a benchmark: the pipeline alone, with DeepCache, with the reference package, and with fewer steps.

Each has a U-Net of its own that shares the weights with all others, so that they can run in turn without being put on
and taken off, and so that what is compiled for one is not compiled for another.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
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
    "Contestant",
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
"""How the U-Net runs, by a short name: what `DeepCacheConfig.compile` is."""

CAPTURED = ("captured", "autotuned")
"""The modes with CUDA graphs."""

GRAPHS = ("openvino", "onnx")
"""The modes that run exported graphs in another runtime than PyTorch, see `DeepCache.export.use_runtime`."""


class Contestant:
    """One way to run a pipeline, ready to run again and again.

    Args:
        pipe: the pipeline. Nothing of it is changed but where its scheduler stands, which all share.
        method: `BASELINE`, `DEEPCACHE`, `REFERENCE` or `FEWER_STEPS`.
        call: what the pipeline is called with.
        variant: the settings of DeepCache or of the reference package.
        reference: where the reference package is.
        unet_only: whether only the U-Net's calls are run.
        mode: how the U-Net runs, one of `MODES`. For graphs the pipeline has them already.
        unets_like: a contestant whose U-Nets are used, compiled or not, in the place of own ones.

    Attributes:
        pipe: the pipeline with the contestant's own U-Nets.
        loop: the calls of its first U-Net.
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
        unets_like: Contestant | None = None,
    ) -> None:
        self.method = method
        self.variant = variant
        self.call = call
        self.device: torch.device = pipe.device
        self.pipe = copy.copy(pipe)
        self.loop = UnetLoop.of(self.pipe, call)
        self._run: Callable[[Any], None] = self.loop if unet_only else call
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
            self._helper.set_params(
                cache_interval=variant.config.cache_interval, cache_branch_id=variant.config.cache_branch_id
            )
            try:
                self._helper.enable()
            # It wraps layers that not every U-Net has. A run then tells what it told.
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
        """Forgets what is kept between steps, and tells how many bytes that were."""
        if self._engine is not None:
            self._engine.end_run()
            return self.stats.bytes_kept if self.stats is not None else 0
        if self._helper is not None:
            kept = bytes_of(self._helper.cached_output.values())
            # It would keep them until it is disabled, and they would count as memory of those that run next.
            self._helper.cached_output.clear()
            return kept
        return 0

    @property
    def stats(self) -> TrajectoryStats | None:
        """What a run did; of DeepCache alone. Every run does the same, and counting its multiply-accumulates would keep
        the device waiting, so only the first one is counted."""
        if self._engine is not None and self._stats is None:
            stats = self._engine.stats
            self._stats = stats if stats.pattern else None
        return self._stats


def bytes_of(outputs: Any) -> int:
    """Bytes of all distinct tensors in the outputs of layers."""
    found: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            found[id(value)] = value.nbytes
        elif isinstance(value, (tuple, list)):
            for item in value:
                visit(item)
        elif hasattr(value, "to_tuple"):
            visit(value.to_tuple())

    visit(list(outputs))
    return sum(found.values())


def sharing_weights(module: nn.Module) -> nn.Module:
    """A copy of a module that has the same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, shared)
