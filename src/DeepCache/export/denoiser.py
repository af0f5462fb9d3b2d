"""A denoiser that runs graphs and replaces `pipe.unet`."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from DeepCache.engine.layouts import CachedFeature, Layout, Overlay, SkipBranch, register_layout
from DeepCache.errors import GraphError
from DeepCache.export.call import Call, CallReader
from DeepCache.export.description import GraphDescription, GraphSetDescription, TensorDescription
from DeepCache.export.formats import LoadedGraph, graph_format
from DeepCache.export.graphs import DEEP_IN
from DeepCache.export.writing import why_damaged

__all__ = ["Graph", "GraphDenoiser", "GraphSource", "load_graph", "load_graphs"]


class Graph:
    """A graph in its runtime, used by one thread at a time. `multiple` must divide dynamic heights and widths."""

    def __init__(self, description: GraphDescription, run: LoadedGraph, multiple: int = 1) -> None:
        self.description, self._run, self._multiple = description, run, multiple
        self._turn = threading.Lock()

    def why_not(self, call: Call, feature: torch.Tensor | None) -> str:
        """The reason why the graph does not fit a call; an empty string if it does."""
        given = call.tensors if feature is None else call.tensors | {DEEP_IN: feature}
        wanted = {each.argument for each in self.description.inputs}
        if extra := given.keys() - wanted - {*self.description.unread}:
            return f"it was exported without {', '.join(sorted(extra))}"
        if missing := wanted - given.keys():
            return f"it requires {', '.join(sorted(missing))}, missing in this call"
        sample = self.description.inputs[0]
        for each in self.description.inputs:
            found = tuple(given[each.argument].shape)
            if reason := _why_not_shape(each, found, sample, tuple(given[sample.argument].shape), self._multiple):
                return reason
        here, there = call.constants, self.description.constants
        for name in sorted({*here, *there}):
            if here.get(name) != there.get(name):
                return f"{name} is {here.get(name)!r}, but it was exported with {there.get(name)!r}"
        return ""

    def __call__(self, call: Call, feature: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Runs the graph and returns its outputs in the dtype and on the device of the sample."""
        given = call.tensors if feature is None else call.tensors | {DEEP_IN: feature}
        tensors = [given[each.argument].to(getattr(torch, each.dtype)) for each in self.description.inputs]
        sample = next(iter(call.tensors.values()))
        with self._turn:
            return [tensor.to(sample.device, sample.dtype) for tensor in self._run(tensors)]

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        return self  # copies share the graphs


class GraphSource(Protocol):
    """Finds the graph for a call: of a shallow step if a deep feature is given, else of a full step."""

    def graph(self, call: Call, feature: torch.Tensor | None) -> Graph: ...


class LoadedGraphs:
    """The graphs of a folder."""

    def __init__(self, folder: Path, provider: str | None) -> None:
        self.description = GraphSetDescription.read(folder)
        self._folder = folder
        self._graphs = [load_graph(folder, self.description, name, provider) for name in self.description.graphs]

    def graph(self, call: Call, feature: torch.Tensor | None) -> Graph:
        step = "full" if feature is None else "shallow"
        reasons = {}
        for graph in self._graphs:
            if graph.description.step == step:
                reason = graph.why_not(call, feature)
                if not reason:
                    return graph
                reasons[graph.description.file] = reason
        listed = "; ".join(f"{file}: {reason}" for file, reason in reasons.items())
        raise GraphError(
            f"no graph in {str(self._folder)!r} fits this call ({listed or f'there is no {step} step'}). Call the "
            "pipeline as for the export, or export for this call"
        )


def load_graph(folder: Path, description: GraphSetDescription, name: str, provider: str | None = None) -> Graph:
    described = description.graphs[name]
    if damage := why_damaged(folder, described):
        raise GraphError(f"cannot load the graph {name!r} in {str(folder)!r}: {damage}. Export again")
    path, dtype = folder / described.file, getattr(torch, description.dtype)
    try:
        run = graph_format(description.format).load(path, provider=provider, dtype=dtype)
    except (ValueError, ImportError):
        raise
    except Exception as error:  # of any type, from runtimes
        reason = " ".join(str(error).split())[:300]
        raise GraphError(f"cannot load the graph {str(path)!r}: {reason}. Export again") from error
    return Graph(described, run, description.multiple)


def load_graphs(folder: str | os.PathLike[str], *, provider: str | None = None) -> GraphDenoiser:
    """Loads exported graphs as a denoiser to assign to `pipe.unet`.

    Args:
        folder (`str` or `Path`): the folder that `export_graphs` or `deepcache export` wrote.
        provider (`str`, *optional*):
            A provider of ONNX Runtime (`CUDAExecutionProvider`, `DmlExecutionProvider`, `CoreMLExecutionProvider`, …)
            or a device of OpenVINO (`GPU`, `NPU`). The CPU by default.

    Raises:
        FileNotFoundError: the description or a graph is missing.
        ValueError: the description or a graph cannot be read, or the runtime does not have the provider.
        ImportError: the runtime, or the class of the denoiser, is not installed.
    """
    found = LoadedGraphs(Path(folder), provider)
    description = found.description
    module, _, name = description.denoiser.rpartition(".")
    kind: Any = getattr(importlib.import_module(module), name)

    def architecture() -> nn.Module:
        with torch.device("meta"):
            made: nn.Module = kind.from_config(description.config)
        return made

    denoiser = GraphDenoiser(
        found,
        CallReader(kind.forward),
        branch=description.branch,
        config=description.config,
        dtype=getattr(torch, description.dtype),
        prompt_half=description.prompt_half,
        runtime=description.format,
    )
    denoiser.describe_original(description.fingerprint, architecture)
    return denoiser


class GraphDenoiser(ModelMixin):
    """A denoiser whose full and shallow steps are graphs.

    It has no weights and no layers. Apply adapters, FreeU and attention processors to the original denoiser before the
    export.

    Args:
        source: finds the graph for a call.
        read: reads the calls of the original denoiser.
        branch: the skip branch of shallow steps.
        config: the configuration of the original denoiser.
        dtype: the dtype of the original denoiser.
        prompt_half: the index of the conditional half of a guided batch, 0 or 1.
        runtime: the runtime of the graphs.
    """

    def __init__(
        self,
        source: GraphSource,
        read: CallReader,
        *,
        branch: int,
        config: dict[str, Any],
        dtype: torch.dtype,
        prompt_half: int = 1,
        runtime: str = "",
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._source, self._read = [source], read
        self.branch, self.prompt_half = branch, prompt_half
        self.runtime, self._dtype = runtime, dtype
        self.config = FrozenDict(config)  # type: ignore[no-untyped-call]
        self.deep_part = _DeepPart(self)
        # Pipelines of SDXL and Stable Video Diffusion read its size.
        features = config.get("projection_class_embeddings_input_dim")
        self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=features))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the original denoiser."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """The device of inputs and outputs."""
        return torch.device("cpu")

    def describe_original(self, fingerprint: dict[str, Any], architecture: Callable[[], nn.Module]) -> None:
        """Sets the fingerprint of the original denoiser, for plans, and its architecture, for statistics."""
        self.deepcache_fingerprint = fingerprint
        self._architecture: list[Any] = [architecture, None]

    @property
    def deepcache_architecture(self) -> nn.Module:
        """A module with the structure of the original denoiser, with or without weights."""
        if self._architecture[1] is None:
            self._architecture[1] = self._architecture[0]()
        found: nn.Module = self._architecture[1]
        return found

    def forward(self, sample: torch.Tensor, timestep: Any, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        """Runs a full step, or a shallow one if DeepCache has replaced the deep part by a stored feature."""
        call = self._read((sample, timestep, *args), kwargs)
        made: list[torch.Tensor] = []
        feature = self.deep_part(call, made)
        prediction = made[0] if made else self._source[0].graph(call, feature)(call, feature)[0]
        if not return_dict:
            return (prediction,)
        return UNet2DOutput(sample=prediction)

    def full_step(self, call: Call) -> list[torch.Tensor]:
        """Returns the prediction and the deep feature."""
        return self._source[0].graph(call, None)(call)

    def to(self, *args: Any, **kwargs: Any) -> GraphDenoiser:  # type: ignore[override]
        """Has no effect: the runtime places the graphs."""
        return self

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Always raises `GraphError`."""
        raise GraphError("graphs are not saved with their pipeline. Copy the folder of the graphs")

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Always raises `GraphError`."""
        raise GraphError("graphs are compiled by their runtime. Remove torch.compile")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(
                f"a GraphDenoiser has no {name!r}: its graphs cannot be changed. Change the pipeline first, and export "
                "again"
            ) from None


class _DeepPart(nn.Module):
    """Stands for the deep part of a denoiser: runs the graph of a full step and returns the deep feature."""

    def __init__(self, denoiser: GraphDenoiser) -> None:
        super().__init__()
        self._denoiser = [denoiser]

    def forward(self, call: Call, made: list[torch.Tensor]) -> torch.Tensor:
        prediction, feature = self._denoiser[0].full_step(call)
        made.append(prediction)
        return feature


@register_layout
class GraphLayout(Layout):
    """The layout of a `GraphDenoiser`, which can only be cut at the branch of its graphs."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__(denoiser)
        assert isinstance(denoiser, GraphDenoiser)
        self._graphs = denoiser
        self.prompt_half = denoiser.prompt_half  # type: ignore[misc]
        self.branches = tuple(SkipBranch(number, f"branch {number}") for number in range(denoiser.branch + 1))

    @classmethod
    def recognises(cls, denoiser: nn.Module) -> bool:
        return isinstance(denoiser, GraphDenoiser)

    def overlays(self, branch: SkipBranch, cached: CachedFeature) -> list[Overlay]:
        if branch.number != self._graphs.branch:
            raise ValueError(
                f"cache_branch_id must be {self._graphs.branch} for these graphs, got {branch.number}. Export again "
                "for another branch"
            )
        return [Overlay(self.denoiser, "deep_part", cached)]

    def tapped(self, branch: SkipBranch) -> list[nn.Module]:
        return [self._graphs.deep_part]


def _why_not_shape(
    wanted: TensorDescription,
    found: tuple[int, ...],
    sample: TensorDescription,
    sample_found: tuple[int, ...],
    multiple: int,
) -> str:
    """The reason why an input has the wrong shape; an empty string if it has not. Dynamic sizes must relate to the
    sample as in the example, which not every runtime checks."""
    shape, example = wanted.shape, wanted.example
    if len(found) != len(shape) or any(want not in (None, have) for have, want in zip(found, shape, strict=True)):
        return f"{wanted.argument} has shape {found}, but it was exported for {_shape(shape)}"
    for side in (-2, -1):
        if wanted is sample and len(shape) > 2 and shape[side] is None and found[side] % multiple:
            return f"height and width of the sample must be multiples of {multiple}, got {found[-2:]}"
    for side, want in enumerate(shape):
        # The length of the text is independent of the sample.
        if want is None and not (wanted.argument == "encoder_hidden_states" and side == 1):
            other = 0 if side == 0 else side - len(shape)
            if found[side] * sample.example[other] != example[side] * sample_found[other]:
                return f"{wanted.argument} has shape {found}, which does not match a sample of {sample_found}"
    return ""


def _shape(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if side is None else str(side) for side in shape) + ")"
