"""A denoiser that runs graphs. It stands where `pipe.unet` stands, and DeepCache is applied to it as to any other."""

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
from DeepCache.export.call import Call, CallReader
from DeepCache.export.description import GraphDescription, GraphSetDescription, TensorDescription
from DeepCache.export.formats import LoadedGraph, graph_format
from DeepCache.export.graphs import DEEP_IN
from DeepCache.export.writing import why_damaged

__all__ = ["Graph", "GraphDenoiser", "GraphSource", "load_graph", "load_graphs"]


class Graph:
    """A graph in its runtime. Threads take turns.

    Args:
        description: what it takes and returns.
        run: runs it.
        multiple: what open heights and widths must be a multiple of.
    """

    def __init__(self, description: GraphDescription, run: LoadedGraph, multiple: int = 1) -> None:
        self.description, self._run, self._multiple = description, run, multiple
        self._turn = threading.Lock()

    def why_not(self, call: Call, feature: torch.Tensor | None) -> str:
        """Why the graph is not for a call; an empty string where it is."""
        given = call.tensors if feature is None else call.tensors | {DEEP_IN: feature}
        wanted = {each.argument for each in self.description.inputs}
        if extra := given.keys() - wanted - {*self.description.unread}:
            return f"it was exported without {', '.join(sorted(extra))}"
        if missing := wanted - given.keys():
            return f"it takes {', '.join(sorted(missing))}, which the call lacks"
        sample = self.description.inputs[0]
        for each in self.description.inputs:
            found = tuple(given[each.argument].shape)
            if reason := _why_not_shape(each, found, sample, tuple(given[sample.argument].shape), self._multiple):
                return reason
        here, there = call.constants, self.description.constants
        for name in sorted({*here, *there}):
            if here.get(name) != there.get(name):
                return f"{name} is {here.get(name)!r}, and it was exported with {there.get(name)!r}"
        return ""

    def __call__(self, call: Call, feature: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Runs it; what it returns is of the dtype and on the device of the sample."""
        given = call.tensors if feature is None else call.tensors | {DEEP_IN: feature}
        tensors = [given[each.argument].to(getattr(torch, each.dtype)) for each in self.description.inputs]
        sample = next(iter(call.tensors.values()))
        with self._turn:
            return [tensor.to(sample.device, sample.dtype) for tensor in self._run(tensors)]

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        """A copy of a denoiser shares the graphs, which hold the weights."""
        return self


class GraphSource(Protocol):
    """Where a denoiser has its graphs from."""

    def graph(self, call: Call, feature: torch.Tensor | None) -> Graph:
        """The graph of a full step for a call; of a shallow step where a deep feature is given.

        Raises:
            ValueError: there is none, with the reason.
        """


class LoadedGraphs:
    """The graphs of a folder.

    Args:
        folder: the folder.
        provider: what computes, by the runtime's name for it.
    """

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
        raise ValueError(
            f"no graph in {str(self._folder)!r} fits this call ({listed or 'there is none of this kind of step'}). "
            "Call the pipeline as for the export, or export for this call"
        )


def load_graph(folder: Path, description: GraphSetDescription, name: str, provider: str | None = None) -> Graph:
    """One graph of a folder."""
    described = description.graphs[name]
    if damage := why_damaged(folder, described):
        raise ValueError(f"cannot load the graph {name!r} in {str(folder)!r}: {damage}. Export again")
    path, dtype = folder / described.file, getattr(torch, description.dtype)
    try:
        run = graph_format(description.format).load(path, provider=provider, dtype=dtype)
    except (ValueError, ImportError):
        raise
    # Runtimes raise errors of their own where a file is damaged.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"cannot load the graph {str(path)!r}: {reason}. Export again") from error
    return Graph(described, run, description.multiple)


def load_graphs(folder: str | os.PathLike[str], *, provider: str | None = None) -> GraphDenoiser:
    """Loads exported graphs as a denoiser that can be assigned to `pipe.unet`.

    Args:
        folder (`str` or `Path`): what `export_graphs` or `deepcache export` wrote.
        provider (`str`, *optional*):
            What computes: a provider of ONNX Runtime (`CUDAExecutionProvider`, `DmlExecutionProvider`,
            `CoreMLExecutionProvider`, …) or a device of OpenVINO (`GPU`, `NPU`). The CPU by default.

    Raises:
        FileNotFoundError: the folder is not one of graphs, or lacks one.
        ValueError: the description cannot be read, or the runtime has no such provider.
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

    It has no weights and no layers: adapters, FreeU, attention processors and `torch.compile` are for the denoiser that
    the graphs are made of, before they are made.

    Args:
        source: where it has its graphs from.
        read: reads the calls of the denoiser that the graphs are made of.
        branch: the skip branch at which shallow steps are cut.
        config: the configuration of that denoiser.
        dtype: what it computes in.
        prompt_half: which half of a guided batch has the prompt, 0 or 1.
        runtime: what the graphs run in.
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
        # Pipelines of SDXL and Stable Video Diffusion look up its size.
        features = config.get("projection_class_embeddings_input_dim")
        self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=features))

    @property
    def dtype(self) -> torch.dtype:
        """What the denoiser that the graphs are made of computes in."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where samples are handed over."""
        return torch.device("cpu")

    def describe_original(self, fingerprint: dict[str, Any], architecture: Callable[[], nn.Module]) -> None:
        """What plans and statistics look at in place of this module.

        Args:
            fingerprint: that of the denoiser that the graphs are made of.
            architecture: makes a module of its structure, with or without weights.
        """
        self.deepcache_fingerprint = fingerprint
        self._architecture: list[Any] = [architecture, None]

    @property
    def deepcache_architecture(self) -> nn.Module:
        """A module of the structure of the denoiser that the graphs are made of."""
        if self._architecture[1] is None:
            self._architecture[1] = self._architecture[0]()
        found: nn.Module = self._architecture[1]
        return found

    def forward(self, sample: torch.Tensor, timestep: Any, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        """A full step; a shallow one where DeepCache has replaced the deep part by a stored deep feature."""
        call = self._read((sample, timestep, *args), kwargs)
        made: list[torch.Tensor] = []
        feature = self.deep_part(call, made)
        prediction = made[0] if made else self._source[0].graph(call, feature)(call, feature)[0]
        if not return_dict:
            return (prediction,)
        return UNet2DOutput(sample=prediction)

    def full_step(self, call: Call) -> list[torch.Tensor]:
        """The prediction and the deep feature."""
        return self._source[0].graph(call, None)(call)

    def to(self, *args: Any, **kwargs: Any) -> GraphDenoiser:  # type: ignore[override]
        """Without effect: graphs stay where their runtime has them."""
        return self

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise ValueError("a denoiser of graphs is not saved with its pipeline. Copy the folder of the graphs")

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise ValueError("a denoiser of graphs is compiled by its runtime. Leave torch.compile out")

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(
                f"a denoiser of graphs has no {name!r}: its graphs cannot be changed. Change the pipeline first, and "
                "make them again"
            ) from None


class _DeepPart(nn.Module):
    """Where the deep part of a denoiser is: on a full step it runs the whole graph and returns the deep feature."""

    def __init__(self, denoiser: GraphDenoiser) -> None:
        super().__init__()
        self._denoiser = [denoiser]

    def forward(self, call: Call, made: list[torch.Tensor]) -> torch.Tensor:
        prediction, feature = self._denoiser[0].full_step(call)
        made.append(prediction)
        return feature


@register_layout
class GraphLayout(Layout):
    """Denoisers of graphs, which are cut where their graphs are."""

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
                f"cache_branch_id must be {self._graphs.branch}, at which these graphs are cut, got {branch.number}. "
                "Export again for another branch"
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
    """Why a graph does not take an input of a shape; an empty string where it does. Open sides must be to the sample as
    they were in the example: not every runtime notices."""
    shape, example = wanted.shape, wanted.example
    if len(found) != len(shape) or any(want not in (None, have) for have, want in zip(found, shape, strict=True)):
        return f"{wanted.argument} has shape {found}, and it was exported for {_shown(shape)}"
    for side in (-2, -1):
        if wanted is sample and len(shape) > 2 and shape[side] is None and found[side] % multiple:
            return f"height and width of the sample must be multiples of {multiple}, got {found[-2:]}"
    for side, want in enumerate(shape):
        # The length of the text is its own.
        if want is None and not (wanted.argument == "encoder_hidden_states" and side == 1):
            other = 0 if side == 0 else side - len(shape)
            if found[side] * sample.example[other] != example[side] * sample_found[other]:
                return f"{wanted.argument} has shape {found}, which does not go with a sample of {sample_found}"
    return ""


def _shown(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if side is None else str(side) for side in shape) + ")"
