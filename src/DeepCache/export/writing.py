"""Writes graphs into a folder, each checked against PyTorch."""

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
from DeepCache.export.adapters import merged_adapters
from DeepCache.export.call import Call
from DeepCache.export.description import FILE, GraphDescription, GraphSetDescription, TensorDescription
from DeepCache.export.formats import GraphFormat
from DeepCache.export.graphs import FullGraph, ShallowGraph, StepGraph
from DeepCache.export.identity import file_hash, program_hash, versions_of
from DeepCache.export.options import GraphOptions
from DeepCache.export.tracing import open_sides, read_inputs, size_multiple, trace
from DeepCache.files import write_atomically
from DeepCache.schedule import Step

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
"""Called with a line for each stage of the work."""

UNFINISHED, LOCK = ".unfinished", ".lock"
"""What is beside the graphs while they are written."""

_PROGRESS = "progress.json"
_GRAPHS = ("full", "shallow", "half")
# Layers of GLIGEN, off after a share of the steps.
_SWITCHED = ("GatedSelfAttentionDense",)
_LORA_SCALE = "cross_attention_kwargs.scale"


@dataclass(frozen=True)
class WantedGraph:
    """A graph that is to be made.

    Args:
        name: what it is called.
        call: an example of the calls that it is for.
        feature: an example of the deep feature; None for a full step.
    """

    name: str
    call: Call
    feature: torch.Tensor | None = None


def example_feature(denoiser: nn.Module, branch: int, call: Call) -> torch.Tensor:
    """The deep feature of a call, which runs as a full step."""
    with torch.no_grad():
        full = FullGraph(denoiser, branch_of(denoiser, branch), call)
        feature: torch.Tensor = full(*full.inputs.values())[1]
        return feature


def describe_graphs(
    denoiser: nn.Module, branch: int, options: GraphOptions, config: DeepCacheConfig, steps: Sequence[Step] = ()
) -> GraphSetDescription:
    """The description of graphs that are not made yet.

    Args:
        denoiser: what they are made of.
        branch: the skip branch of shallow steps.
        options: how they are written.
        config: the settings that they are for.
        steps: what each step of a run does.
    """
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
    """Writes graphs and their description into a folder, in place of the graphs that it holds.

    The description comes last, so that a folder with one is complete. Graphs that an interrupted call has finished, and
    that are the same, are kept.

    Args:
        denoiser: what the graphs are made of.
        folder: where to write. Another process must not write there at the same time, see `locked`.
        description: the description, without graphs.
        wanted: the graphs.
        options: how they are written.
        stage: called with a line for each stage of the work.

    Raises:
        ValueError: the denoiser cannot be traced, or a graph not written or run, or it differs from PyTorch.
        OSError: the disk has not enough space, or the folder cannot be written.
    """
    unfinished = folder / UNFINISHED
    unfinished.mkdir(parents=True, exist_ok=True)
    done = _finished(unfinished)
    needed = _needed_space(denoiser, [each for each in wanted if each.name not in done], folder)
    if needed:
        stage(f"Writing about {needed / 1e9:.2g} GB")
    for each in wanted:
        with traced(denoiser, description.branch, each, options, stage) as graph:
            if each.name in done and done[each.name].key == graph.key:
                stage(f"{each.name}: found from an interrupted export")
                continue
            done[each.name] = write_graph(denoiser, unfinished, graph, options, stage)
        _note_progress(unfinished, done)
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
    """The files of the graphs in a folder, the description first.

    Raises:
        ValueError: it holds other files too.
    """
    found = sorted(path for path in folder.iterdir() if path.name not in (UNFINISHED, LOCK))
    if not (folder / FILE).is_file():
        # The graphs of a call that was interrupted while it moved them have no description yet.
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
            f"the folder {str(folder)!r} holds other files than graphs, such as {others[0]!r}. Name another folder"
        )
    return sorted(found, key=lambda path: path.name != FILE)


def locked(folder: Path) -> FileLock:
    """A lock that one process at a time has on a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / LOCK)


def _finished(unfinished: Path) -> dict[str, GraphDescription]:
    """The graphs that an interrupted call has finished, by name."""
    try:
        noted = json.loads((unfinished / _PROGRESS).read_text(encoding="utf-8"))
        graphs = {name: GraphDescription.from_dict(each) for name, each in noted.items()}
        return {name: each for name, each in graphs.items() if not why_damaged(unfinished, each)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _note_progress(unfinished: Path, done: dict[str, GraphDescription]) -> None:
    write_atomically(unfinished / _PROGRESS, json.dumps({name: asdict(each) for name, each in done.items()}))


def why_damaged(folder: Path, graph: GraphDescription) -> str:
    """What is wrong with the files of a graph; an empty string where they are as they were written."""
    for name, expected in graph.files.items():
        path = folder / name
        if not path.is_file():
            return f"its file {name!r} is missing"
        if file_hash(path) != expected:
            return f"its file {name!r} is damaged"
    return ""


def _needed_space(denoiser: nn.Module, wanted: Sequence[WantedGraph], folder: Path) -> int:
    """Bytes that graphs take on the disk, at most.

    Raises:
        OSError: there are not so many.
    """
    weights = sum(parameter.nbytes for parameter in denoiser.parameters())
    needed = int(1.1 * weights) * sum(each.feature is None for each in wanted)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"the graphs need about {needed / 1e9:.1f} GB in {str(folder)!r}, where {free / 1e9:.1f} GB are free. Make "
            "room, or name a folder on another disk"
        )
    return needed


@dataclass(frozen=True)
class TracedGraph:
    """A graph as a program.

    Args:
        wanted: what was wanted.
        graph: the step as a module.
        program: the program, which refers to the weights of the denoiser.
        names: the names of its inputs and outputs.
        key: a hash of all that its files depend on.
    """

    wanted: WantedGraph
    graph: StepGraph
    program: ExportedProgram
    names: list[str]
    key: str


@contextmanager
def traced(
    denoiser: nn.Module, branch: int, wanted: WantedGraph, options: GraphOptions, stage: Stage
) -> Iterator[TracedGraph]:
    """A graph as a program, with the active adapters in its weights for the length of the context.

    Raises:
        ValueError: the denoiser cannot be traced, or is one that a graph cannot stand for.
    """
    _check_denoiser(denoiser)
    fmt = options.require()
    stage(f"{wanted.name}: tracing")
    kind = next(denoiser.parameters()).device.type
    with torch.no_grad(), torch.autocast(kind, enabled=False), merged_adapters(denoiser) as adapters:
        if adapters and _LORA_SCALE in wanted.call.constants:
            raise ValueError(
                f"the adapters {', '.join(adapters)} become part of the weights, and the call scales them by "
                f"{wanted.call.constants[_LORA_SCALE]}. Leave the scale out of cross_attention_kwargs and use "
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
    """Writes a graph into a folder, and compares it with PyTorch.

    Raises:
        ValueError: it cannot be written or run, or differs from PyTorch.
    """
    fmt, graph, wanted, names = options.require(), made.graph, made.wanted, made.names
    count, path = len(graph.inputs), folder / f"{wanted.name}{fmt.suffix}"
    for left in folder.glob(f"{wanted.name}.*"):
        left.unlink()
    stage(f"{wanted.name}: writing")
    _save(fmt, made.program, path, names[:count], names[count:], options.int8)
    stage(f"{wanted.name}: comparing with PyTorch")
    dtype, random = next(denoiser.parameters()).dtype, _random_inputs(graph)
    expected = graph(*random.values())
    found = _run(fmt, path, dtype, list(random.values()))
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
    """Refuses a denoiser of which a graph would be something else: pipelines look into its layers, or its layers tell
    them what they have computed."""
    kind = type(denoiser).__name__
    if denoiser.training:
        raise ValueError(f"this {kind} is in training mode. Call eval() on it first")
    for name, tensor in denoiser.named_parameters():
        if tensor.device.type == "meta" or type(tensor.data) is not torch.Tensor:
            raise ValueError(
                f"graphs hold the weights of the denoiser, and {name!r} is offloaded or quantised. Load the pipeline "
                "without offloading and quantisation"
            )
    layers = [module for module in denoiser.modules() if hasattr(module, "processor")]
    editor = counting_editor(denoiser.modules())
    if editor or counts_parts(layers) or any(map(may_write, layers)):
        what = editor or next(type(layer.processor).__name__ for layer in layers)
        raise ValueError(f"a graph cannot stand for attention processors that keep state from call to call ({what})")
    if any(type(module).__name__ in _SWITCHED for module in denoiser.modules()):
        raise ValueError(f"a graph cannot stand for this {kind}: its pipeline switches layers of it off during a run")


def _save(
    fmt: GraphFormat, program: ExportedProgram, path: Path, inputs: list[str], outputs: list[str], int8: bool
) -> None:
    try:
        fmt.save(program, path, inputs, outputs, int8)
    except OSError:
        raise
    # Converters raise whatever an operation that they do not know makes of them.
    except Exception as error:
        raise ValueError(f"the graph {path.name!r} cannot be written as {fmt.name}: {_first_line(error)}") from error


def _run(fmt: GraphFormat, path: Path, dtype: torch.dtype, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    try:
        return fmt.load(path, dtype=dtype)(inputs)
    except Exception as error:
        raise ValueError(f"{fmt.name} cannot run the graph {path.name!r}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _step(
    denoiser: nn.Module, number: int, wanted: WantedGraph, fmt: GraphFormat, used: frozenset[str] | None = None
) -> StepGraph:
    branch = branch_of(denoiser, number)
    if wanted.feature is None:
        return FullGraph(denoiser, branch, wanted.call, fmt.outside)
    return ShallowGraph(denoiser, branch, wanted.call, wanted.feature, fmt.outside, used)


def _random_inputs(graph: StepGraph) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point() or tensor.ndim < 2:
            # Timesteps, sizes and masks have a meaning.
            return tensor
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    return {name: random(name, tensor) for name, tensor in graph.inputs.items()}


def _names(graph: StepGraph, others: dict[str, str]) -> list[str]:
    """The names of inputs and outputs, in order."""
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
    """The largest difference as a share of the largest value.

    Raises:
        ValueError: it is above what the format promises.
    """
    pairs = [(first.float(), second.float()) for first, second in zip(expected, found, strict=True)]
    difference = max(float((first - second).abs().max() / first.abs().max()) for first, second in pairs)
    tolerance = fmt.int8_tolerance if int8 else fmt.tolerance if dtype == torch.float32 else fmt.half_tolerance
    # Not the other way round: it may be no number.
    if not difference <= tolerance:
        raise ValueError(
            f"the graph {name!r} differs from PyTorch by {difference:.2g} of the largest value, and {tolerance:g} is "
            f"allowed. Try another format than {fmt.name}"
        )
    return difference
