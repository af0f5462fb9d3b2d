"""Runs the denoiser of a pipeline as graphs, which are exported on demand and cached on disk."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.fingerprint import fingerprint
from DeepCache.engine.layouts import branch_of, layout_of
from DeepCache.engine.unets import unets_of
from DeepCache.errors import GraphError
from DeepCache.export.call import Call, CallReader
from DeepCache.export.denoiser import Graph, GraphDenoiser, load_graph
from DeepCache.export.description import GraphSetDescription
from DeepCache.export.exporting import denoiser_of
from DeepCache.export.formats import GraphOptions
from DeepCache.export.graphs import DEEP_IN
from DeepCache.export.identity import call_signature
from DeepCache.export.writing import LOCK, Stage, WantedGraph, describe_graphs, locked, traced, write_graph
from DeepCache.runtime import branch_for, check_runtime

__all__ = ["cache_folder", "use_runtime"]

_CACHE = "DEEPCACHE_CACHE"
_MOST_LOADED = 6  # full, shallow and half-batch graphs of two sizes


def use_runtime(
    pipe: Any, runtime: str, config: DeepCacheConfig | None = None, *, on_stage: Stage | None = None
) -> None:
    """Runs the denoiser of a pipeline in another runtime.

    A graph is exported at the first call that needs it, for each kind of step, size and batch. This takes seconds to
    minutes; `cache_folder()` keeps the graphs for later runs. Change the denoiser (adapters, FreeU, attention
    processors) before.

    Args:
        pipe: the pipeline, without DeepCache. Its `unet` is replaced.
        runtime (`str`): `torch` (restores the denoiser), `openvino` or `onnx`.
        config (`DeepCacheConfig`, *optional*):
            The settings that will be applied, for the branch of the graphs.
        on_stage: called with the name of each stage of an export.

    Raises:
        TypeError: the pipeline does not have exactly one denoiser.
        ValueError: the runtime is unknown or does not support the settings, DeepCache is applied already, or the
            pipeline is not on the CPU or in an unsupported dtype.
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
    found = unets_of(pipe)
    name = next(iter(found)) if len(found) == 1 else ""
    front = found.get(name)
    if not name:
        raise TypeError(
            f"a runtime requires a pipeline with one denoiser, got {', '.join(found) or 'a denoiser alone'}"
        )
    if front is not None and "_deepcache_engine" in vars(front):
        raise ValueError("DeepCache is applied to this pipeline. Call remove_deepcache(pipe) first")
    if isinstance(front, GraphDenoiser):
        if not isinstance(front._source[0], MadeGraphs):
            raise ValueError("the pipeline has exported graphs, whose runtime is fixed. Load a pipeline with its U-Net")
        setattr(pipe, name, front.deepcache_architecture)
    if runtime == "torch":
        return
    denoiser, branch = denoiser_of(pipe), branch_for(config)
    branch_of(denoiser, branch)
    inner = [key for key, part in vars(pipe).items() if denoiser in getattr(part, "components", {}).values()]
    if inner:
        raise ValueError(f"this {type(pipe).__name__} runs its denoiser in pipe.{inner[0]}. Call use_runtime on it")
    parameter = next(denoiser.parameters())
    if parameter.device.type != "cpu":
        raise ValueError(
            f"runtime {runtime} requires the denoiser on the CPU, got {parameter.device}. Move it to the CPU"
        )
    options = GraphOptions(runtime)
    options.require()
    options.check(denoiser)
    front = GraphDenoiser(
        MadeGraphs(denoiser, branch, options, on_stage or (lambda stage: None)),
        CallReader.of(denoiser),
        branch=branch,
        config=dict(getattr(denoiser, "config", {})),
        dtype=parameter.dtype,
        prompt_half=layout_of(denoiser).prompt_half,
        runtime=runtime,
    )
    front.describe_original(fingerprint(denoiser), lambda: denoiser)
    # Pipelines with an IP-Adapter read the number of adapters from it.
    projection = getattr(denoiser, "encoder_hid_proj", None)
    if projection is not None:
        vars(front)["encoder_hid_proj"] = projection
    setattr(pipe, name, front)


def cache_folder() -> Path:
    """The folder of cached graphs: `$DEEPCACHE_CACHE`, or `deepcache` in `$XDG_CACHE_HOME` or `~/.cache`."""
    own = os.environ.get(_CACHE)
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepcache"


class MadeGraphs:
    """Exports graphs of a denoiser on demand.

    The denoiser is traced each time. The traced program, with the values of all weights, identifies the graph on disk.
    Graphs in memory do not see later changes of the denoiser.
    """

    def __init__(self, denoiser: nn.Module, branch: int, options: GraphOptions, stage: Stage) -> None:
        self._denoiser, self._branch, self._options, self._stage = denoiser, branch, options, stage
        # In the order of their last use.
        self._graphs: OrderedDict[str, Graph] = OrderedDict()
        self._turn = threading.Lock()

    def graph(self, call: Call, feature: torch.Tensor | None) -> Graph:
        given = call.tensors if feature is None else call.tensors | {DEEP_IN: feature}
        signature = call_signature(given, call.constants)
        with self._turn:
            if signature not in self._graphs:
                # Each graph of a full step contains all weights.
                while len(self._graphs) >= _MOST_LOADED:
                    self._graphs.popitem(last=False)
                self._graphs[signature] = self._made(
                    WantedGraph("full" if feature is None else "shallow", call, feature), signature
                )
            self._graphs.move_to_end(signature)
            return self._graphs[signature]

    def __deepcopy__(self, memo: dict[int, Any]) -> MadeGraphs:
        return self  # copies share the graphs

    def _made(self, wanted: WantedGraph, signature: str) -> Graph:
        description = describe_graphs(self._denoiser, self._branch, self._options, DeepCacheConfig())
        with traced(self._denoiser, self._branch, wanted, self._options, self._stage) as graph:
            folder = cache_folder() / hashlib.sha256(f"{graph.key} {signature}".encode()).hexdigest()[:24]
            with locked(folder):
                found = self._loaded(folder, graph.key)
                if found is None:
                    # Outdated, damaged or unfinished files.
                    for path in folder.iterdir():
                        if path.name != LOCK:
                            path.unlink()
                    made = write_graph(self._denoiser, folder, graph, self._options, self._stage)
                    replace(description, graphs={wanted.name: made}).write(folder)
                    found = self._loaded(folder, graph.key)
        if found is None:
            raise GraphError(f"cannot read the graph that was just written to {str(folder)!r}. Check the disk")
        return found

    def _loaded(self, folder: Path, key: str) -> Graph | None:
        """The graph in a folder; None if it is missing, damaged or outdated."""
        try:
            found = GraphSetDescription.read(folder)
            (name,) = found.graphs
            if found.graphs[name].key != key:
                return None
            self._stage(f"{name}: loading")
            return load_graph(folder, found, name)
        except (OSError, ValueError):
            return None
