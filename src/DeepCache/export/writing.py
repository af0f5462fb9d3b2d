"""Writes graphs to a folder and compares them with PyTorch."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock
from torch import nn
from torch.export import ExportedProgram

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.attention import counting_editor, may_write
from DeepCache.engine.fingerprint import fingerprint
from DeepCache.engine.guidance import counts_parts
from DeepCache.engine.layouts import branch_of, layout_of
from DeepCache.errors import GraphError
from DeepCache.export.call import Call
from DeepCache.export.description import FILE, GraphDescription, GraphSetDescription, TensorDescription
from DeepCache.export.formats import GraphFormat, GraphOptions
from DeepCache.export.graphs import FullGraph, ShallowGraph, StepGraph
from DeepCache.export.identity import file_hash, program_hash, versions_of
from DeepCache.export.tracing import merged_adapters, open_sides, read_inputs, size_multiple, trace
from DeepCache.files import write_atomically
from DeepCache.schedule import Step
from DeepCache.text import format_bytes, shortened

__all__ = [
    "LOCK",
    "Stage",
    "WantedGraph",
    "describe_graphs",
    "example_feature",
    "folder_of_graphs",
    "locked",
    "traced",
    "why_damaged",
    "write_graph",
    "write_graphs",
]

Stage = Callable[[str], None]
"""Called with the name of each stage of the work."""

UNFINISHED, LOCK = ".unfinished", ".lock"
"""A folder and a file beside the graphs while they are written."""

_PROGRESS = "progress.json"
_GRAPHS = ("full", "shallow", "half")
# GLIGEN disables these layers during a run.
_SWITCHED = ("GatedSelfAttentionDense",)
_LORA_SCALE = "cross_attention_kwargs.scale"


@dataclass(frozen=True)
class WantedGraph:
    """A graph to make, with an example call, and for shallow steps an example of the deep feature."""

    name: str
    call: Call
    feature: torch.Tensor | None = None


def example_feature(denoiser: nn.Module, branch: int, call: Call) -> torch.Tensor:
    """Runs a call as a full step and returns the deep feature."""
    with torch.no_grad():
        full = FullGraph(denoiser, branch_of(denoiser, branch), call)
        feature: torch.Tensor = full(*full.inputs.values())[1]
        return feature


def describe_graphs(
    denoiser: nn.Module, branch: int, options: GraphOptions, config: DeepCacheConfig, steps: Sequence[Step] = ()
) -> GraphSetDescription:
    """The description of a set of graphs, without the graphs."""
    return GraphSetDescription(
        format=options.format,
        branch=branch,
        denoiser=f"{type(denoiser).__module__}.{type(denoiser).__qualname__}",
        config=json.loads(json.dumps(dict(getattr(denoiser, "config", {})), default=str)),
        dtype=str(next(denoiser.parameters()).dtype).removeprefix("torch."),
        prompt_half=layout_of(denoiser).prompt_half,
        fingerprint=fingerprint(denoiser),
        settings=config.to_dict(),
        steps=tuple("full" if step.full else "skipped" if step.skipped else "shallow" for step in steps),
        forecast_order=config.highest_order,
        versions=_versions(options),
        multiple=size_multiple(denoiser) if options.dynamic else 1,
    )


def write_graphs(
    denoiser: nn.Module,
    folder: Path,
    description: GraphSetDescription,
    wanted: Sequence[WantedGraph],
    options: GraphOptions,
    stage: Stage,
) -> GraphSetDescription:
    """Writes graphs and their description to a locked folder and replaces those that it contains.

    The description comes last, so that a folder with one is complete. Unchanged graphs of an interrupted export are
    reused.

    Raises:
        GraphError: a graph cannot be traced, written or run, or differs from PyTorch.
        OSError: the disk is full, or the folder cannot be written.
    """
    unfinished = folder / UNFINISHED
    unfinished.mkdir(parents=True, exist_ok=True)
    done = _finished(unfinished)
    weights = sum(parameter.nbytes for parameter in denoiser.parameters())
    needed = int(1.1 * weights) * sum(each.feature is None and each.name not in done for each in wanted)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"the graphs need about {format_bytes(needed)} in {str(folder)!r}, where {format_bytes(free)} are free. "
            "Delete files, or choose a folder on another disk"
        )
    if needed:
        stage(f"Writing about {format_bytes(needed)}")
    for each in wanted:
        with traced(denoiser, description.branch, each, options, stage) as graph:
            if each.name in done and done[each.name].key == graph.key:
                stage(f"{each.name}: reused from an interrupted export")
                continue
            done[each.name] = write_graph(denoiser, unfinished, graph, options, stage)
        write_atomically(unfinished / _PROGRESS, json.dumps({name: asdict(each) for name, each in done.items()}))
    finished = replace(description, graphs={each.name: done[each.name] for each in wanted})
    for path in folder_of_graphs(folder):
        path.unlink()
    for graph_done in finished.graphs.values():
        for name in graph_done.files:
            (unfinished / name).replace(folder / name)
    finished.write(unfinished)
    (unfinished / FILE).replace(folder / FILE)
    shutil.rmtree(unfinished)
    return finished


def folder_of_graphs(folder: Path) -> list[Path]:
    """The files of the graphs in a folder, the description first. Raises `ValueError` if it contains other files."""
    found = sorted(path for path in folder.iterdir() if path.name not in (UNFINISHED, LOCK))
    if not (folder / FILE).is_file():
        # An export that was interrupted while it moved the graphs has no description yet.
        interrupted = (folder / UNFINISHED).is_dir()
        known = {path.name for path in found if interrupted and path.name.split(".")[0] in _GRAPHS}
    else:
        try:
            description = GraphSetDescription.read(folder)
            known = {FILE, *(name for graph in description.graphs.values() for name in graph.files)}
        except (OSError, ValueError):
            known = {path.name for path in found if path.name == FILE or path.name.split(".")[0] in _GRAPHS}
    if others := [path.name for path in found if path.name not in known]:
        raise ValueError(
            f"the folder {str(folder)!r} contains other files than graphs, such as {others[0]!r}. Choose another folder"
        )
    return sorted(found, key=lambda path: path.name != FILE)


def locked(folder: Path) -> FileLock:
    """A lock on a folder, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / LOCK)


def _finished(unfinished: Path) -> dict[str, GraphDescription]:
    """The finished graphs of an interrupted export."""
    try:
        noted = json.loads((unfinished / _PROGRESS).read_text(encoding="utf-8"))
        graphs = {name: GraphDescription.from_dict(each) for name, each in noted.items()}
        return {name: each for name, each in graphs.items() if not why_damaged(unfinished, each)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def why_damaged(folder: Path, graph: GraphDescription) -> str:
    """What is wrong with the files of a graph; an empty string if nothing is."""
    for name, expected in graph.files.items():
        path = folder / name
        if not path.is_file():
            return f"its file {name!r} is missing"
        if file_hash(path) != expected:
            return f"its file {name!r} is damaged"
    return ""


@dataclass(frozen=True)
class TracedGraph:
    """A graph as a program, the names of its inputs and outputs, and a hash of everything that its files depend on."""

    wanted: WantedGraph
    graph: StepGraph
    program: ExportedProgram
    names: list[str]
    key: str


@contextmanager
def traced(
    denoiser: nn.Module, branch: int, wanted: WantedGraph, options: GraphOptions, stage: Stage
) -> Iterator[TracedGraph]:
    """Traces a graph. Active adapters are merged into the weights within the context."""
    _check_denoiser(denoiser)
    fmt = options.require()
    stage(f"{wanted.name}: tracing")
    kind = next(denoiser.parameters()).device.type
    with torch.no_grad(), torch.autocast(kind, enabled=False), merged_adapters(denoiser) as adapters:
        if adapters and _LORA_SCALE in wanted.call.constants:
            raise GraphError(
                f"the adapters {', '.join(adapters)} become part of the weights, but the call scales them by "
                f"{wanted.call.constants[_LORA_SCALE]}. Remove the scale from cross_attention_kwargs and use "
                "pipe.set_adapters"
            )
        graph = _step(denoiser, branch, wanted, fmt)
        program = trace(graph, options.dynamic)
        if isinstance(graph, ShallowGraph):
            used = read_inputs(graph, program)
            if used != frozenset(graph.inputs):
                graph = _step(denoiser, branch, wanted, fmt, used)
                program = trace(graph, options.dynamic)
        names = _names(graph, options.names)
        key = json.dumps([program_hash(program), names, asdict(options), _versions(options)], sort_keys=True)
        yield TracedGraph(wanted, graph, program, names, hashlib.sha256(key.encode()).hexdigest())


def write_graph(
    denoiser: nn.Module, folder: Path, made: TracedGraph, options: GraphOptions, stage: Stage
) -> GraphDescription:
    """Writes a graph to a folder and compares it with PyTorch."""
    fmt, graph, wanted, names = options.require(), made.graph, made.wanted, made.names
    count, path = len(graph.inputs), folder / f"{wanted.name}{fmt.suffix}"
    for left in folder.glob(f"{wanted.name}.*"):
        left.unlink()
    stage(f"{wanted.name}: writing")
    try:
        fmt.save(made.program, path, names[:count], names[count:], options.int8)
    except OSError:
        raise
    except Exception as error:  # of any type, from converters
        raise GraphError(f"the graph {path.name!r} cannot be written as {fmt.name}: {_one_line(error)}") from error
    stage(f"{wanted.name}: comparing with PyTorch")
    dtype, random = next(denoiser.parameters()).dtype, _random_inputs(graph)
    expected = graph(*random)
    try:
        found = fmt.load(path, dtype=dtype)(random)
    except Exception as error:  # of any type, from runtimes
        raise GraphError(f"{fmt.name} cannot run the graph {path.name!r}: {_one_line(error)}") from error
    difference = _compare(wanted.name, expected, found, fmt, dtype, options.int8)
    batch = len(next(iter(graph.inputs.values())))
    sides = [*graph.inputs.items(), *zip(graph.outputs, expected, strict=True)]
    tensors = [
        _describe(name, argument, tensor, open_sides(argument, tensor, batch) if options.dynamic else ())
        for name, (argument, tensor) in zip(names, sides, strict=True)
    ]
    files = sorted(folder.glob(f"{wanted.name}.*"))
    return GraphDescription(
        key=made.key,
        step="full" if wanted.feature is None else "shallow",
        file=path.name,
        files={each.name: file_hash(each) for each in files},
        inputs=tuple(tensors[:count]),
        outputs=tuple(tensors[count:]),
        unread=tuple(name for name in wanted.call.tensors if name not in graph.inputs),
        constants=dict(wanted.call.constants),
        bytes=sum(each.stat().st_size for each in files),
        largest_difference=difference,
    )


def _versions(options: GraphOptions) -> dict[str, str]:
    return versions_of((*options.require().packages, *(("nncf",) if options.int8 else ())))


def _check_denoiser(denoiser: nn.Module) -> None:
    """Raises if a graph cannot replace the denoiser, because its pipeline reads or changes its layers."""
    kind = type(denoiser).__name__
    if denoiser.training:
        raise GraphError(f"this {kind} is in training mode. Call eval() first")
    for name, tensor in denoiser.named_parameters():
        if tensor.device.type == "meta" or type(tensor.data) is not torch.Tensor:
            raise GraphError(
                f"graphs contain the weights of the denoiser, but {name!r} is offloaded or quantized. Load the "
                "pipeline without offloading and quantization"
            )
    layers = [module for module in denoiser.modules() if hasattr(module, "processor")]
    editor = counting_editor(denoiser.modules())
    if editor or counts_parts(layers) or any(map(may_write, layers)):
        what = editor or next(type(layer.processor).__name__ for layer in layers)
        raise GraphError(f"a graph cannot replace attention processors that keep state between calls ({what})")
    if any(type(module).__name__ in _SWITCHED for module in denoiser.modules()):
        raise GraphError(f"a graph cannot replace this {kind}: its pipeline disables layers of it during a run")


def _one_line(error: Exception) -> str:
    return shortened(" ".join(str(error).split())) or type(error).__name__


def _step(
    denoiser: nn.Module, number: int, wanted: WantedGraph, fmt: GraphFormat, used: frozenset[str] | None = None
) -> StepGraph:
    branch = branch_of(denoiser, number)
    if wanted.feature is None:
        return FullGraph(denoiser, branch, wanted.call, fmt.outside)
    return ShallowGraph(denoiser, branch, wanted.call, wanted.feature, fmt.outside, used)


def _random_inputs(graph: StepGraph) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    # Timesteps, sizes and masks keep their values.
    return [
        torch.randn(tensor.shape, generator=generator).to(tensor)
        if tensor.is_floating_point() and tensor.ndim >= 2
        else tensor
        for tensor in graph.inputs.values()
    ]


def _names(graph: StepGraph, others: dict[str, str]) -> list[str]:
    own = {name: name.replace(".", "_") for name in (*graph.inputs, *graph.outputs)}
    return [others.get(own[name], own[name]) for name in (*graph.inputs, *graph.outputs)]


def _describe(name: str, argument: str, tensor: torch.Tensor, open_sides: Sequence[int]) -> TensorDescription:
    shape = tuple(None if side in open_sides else length for side, length in enumerate(tensor.shape))
    return TensorDescription(name, argument, shape, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _compare(
    name: str,
    expected: Sequence[torch.Tensor],
    found: Sequence[torch.Tensor],
    fmt: GraphFormat,
    dtype: torch.dtype,
    int8: bool,
) -> float:
    """The largest relative difference. Raises `GraphError` if it is above the tolerance of the format."""
    pairs = [(first.float(), second.float()) for first, second in zip(expected, found, strict=True)]
    difference = max(float((first - second).abs().max() / first.abs().max()) for first, second in pairs)
    tolerance = fmt.int8_tolerance if int8 else fmt.tolerance if dtype == torch.float32 else fmt.half_tolerance
    # NaN is not within the tolerance.
    if not difference <= tolerance:
        raise GraphError(
            f"the graph {name!r} differs from PyTorch by {difference:.2g} of the largest value, {tolerance:g} is "
            f"allowed. Try another format than {fmt.name}"
        )
    return difference
