"""Runs the denoiser of a pipeline as graphs that are made when they are first needed, and kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.fingerprint import fingerprint
from DeepCache.engine.layouts import branch_of, layout_of
from DeepCache.engine.unets import unets_of
from DeepCache.export.call import Call, CallReader
from DeepCache.export.denoiser import Graph, GraphDenoiser, load_graph
from DeepCache.export.description import GraphSetDescription
from DeepCache.export.exporting import denoiser_of
from DeepCache.export.identity import call_signature, model_hash
from DeepCache.export.options import GraphOptions
from DeepCache.export.writing import Stage, WantedGraph, describe_graphs, write_graphs
from DeepCache.runtime import branch_for, check_runtime

__all__ = ["cache_folder", "use_runtime"]

_CACHE = "DEEPCACHE_CACHE"


def use_runtime(
    pipe: Any, runtime: str, config: DeepCacheConfig | None = None, *, on_stage: Stage | None = None
) -> None:
    """Has the denoiser of a pipeline run in another runtime.

    A graph is made at the first call that needs it (another kind of step, size or batch needs another one), which takes
    from seconds to minutes, and kept in `cache_folder()` for the next time.

    Args:
        pipe: the pipeline, without DeepCache on it. Its `unet` is replaced.
        runtime (`str`): `torch` (the denoiser as it is), `openvino` or `onnx`.
        config (`DeepCacheConfig`, *optional*):
            The settings that will be applied, for the branch at which the graphs are cut.
        on_stage: is told what is being done when a graph is made.

    Raises:
        ValueError: there is no such runtime; the settings use several branches, or compile; the weights are out of
            reach, or the pipeline is not on the CPU.
        ImportError: the runtime is not installed.

    Example:
        >>> from DeepCache import DeepCacheConfig, apply_deepcache
        >>> from DeepCache.export import use_runtime
        >>> from DeepCache.models import load_pipeline
        >>> pipe = load_pipeline("shapes", device="cpu")
        >>> config = DeepCacheConfig(cache_interval=3)
        >>> use_runtime(pipe, "torch", config)
        >>> engine = apply_deepcache(pipe, config)
    """
    config = DeepCacheConfig() if config is None else config
    check_runtime(runtime, config)
    (name,) = unets_of(pipe) if len(unets_of(pipe)) == 1 else ("unet",)
    front = getattr(pipe, name)
    if isinstance(front, GraphDenoiser):
        source = front._source[0]
        if not isinstance(source, MadeGraphs):
            raise ValueError("the pipeline has exported graphs, which run in the runtime that they are for")
        if (front.runtime, front.branch) == (runtime, branch_for(config)):
            source.stage = on_stage or _quiet
            return
        setattr(pipe, name, front.deepcache_architecture)
    if runtime == "torch":
        return
    denoiser, branch = denoiser_of(pipe), branch_for(config)
    branch_of(denoiser, branch)
    parameter = next(denoiser.parameters())
    if parameter.device.type != "cpu":
        raise ValueError(f"runtime {runtime} runs on the CPU, and the denoiser is on {parameter.device}. Load it there")
    options = GraphOptions(runtime)
    options.require()
    source = MadeGraphs(denoiser, branch, options, on_stage or _quiet)
    front = GraphDenoiser(
        source,
        CallReader.of(denoiser),
        branch=branch,
        config=dict(getattr(denoiser, "config", {})),
        dtype=parameter.dtype,
        prompt_half=layout_of(denoiser).prompt_half,
        runtime=runtime,
    )
    front.describe_original(fingerprint(denoiser), lambda: denoiser)
    setattr(pipe, name, front)


def _quiet(text: str) -> None:
    pass


def cache_folder() -> Path:
    """Where graphs are kept: `$DEEPCACHE_CACHE`, else `deepcache` in `$XDG_CACHE_HOME` or `~/.cache`."""
    own = os.environ.get(_CACHE)
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepcache"


class MadeGraphs:
    """Makes graphs of a denoiser when they are first asked for.

    Args:
        denoiser: the denoiser.
        branch: the skip branch at which shallow steps are cut.
        options: how graphs are written.
        stage: is told what is being done; may be replaced.
    """

    def __init__(self, denoiser: nn.Module, branch: int, options: GraphOptions, stage: Stage) -> None:
        self._denoiser, self._branch, self._options, self.stage = denoiser, branch, options, stage
        # Of weights that change afterwards nothing would be seen: the graphs have those that are there now.
        self._hash = model_hash(denoiser)
        self._graphs: dict[str, Graph] = {}
        self._turn = threading.Lock()

    def graph(self, call: Call, feature: torch.Tensor | None) -> Graph:
        given = call.tensors if feature is None else call.tensors | {"": feature}
        key = call_signature(given, call.constants)
        with self._turn:
            if key not in self._graphs:
                self._graphs[key] = self._made(
                    WantedGraph("full" if feature is None else "shallow", call, feature), key
                )
            return self._graphs[key]

    def __deepcopy__(self, memo: dict[int, Any]) -> MadeGraphs:
        """A copy of a denoiser shares the graphs, which hold the weights."""
        return self

    def _made(self, wanted: WantedGraph, key: str) -> Graph:
        """The graph from the disk; made where it is not there, or was made by other versions."""
        parts = [self._hash, self._branch, key, asdict(self._options), str(next(self._denoiser.parameters()).dtype)]
        folder = cache_folder() / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
        description = describe_graphs(
            self._denoiser, self._branch, [wanted], self._options, DeepCacheConfig(), hashed=self._hash
        )
        found = _read(folder)
        if found is None or found.key != description.key:
            found = write_graphs(self._denoiser, folder, description, [wanted], self._options, self.stage)
        self.stage(f"{wanted.name}: loading")
        return load_graph(folder, found, wanted.name)


def _read(folder: Path) -> GraphSetDescription | None:
    try:
        return GraphSetDescription.read(folder)
    except (OSError, ValueError):
        return None
