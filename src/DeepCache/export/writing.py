"""Writes graphs into a folder, each checked against PyTorch."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock
from torch import nn
from torch.export import ExportedProgram

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.fingerprint import fingerprint
from DeepCache.engine.layouts import branch_of, layout_of
from DeepCache.export.adapters import merged_adapters
from DeepCache.export.call import Call
from DeepCache.export.description import GraphDescription, GraphSetDescription, TensorDescription
from DeepCache.export.formats import GraphFormat
from DeepCache.export.graphs import FullGraph, ShallowGraph
from DeepCache.export.identity import call_signature, model_hash, versions_of
from DeepCache.export.options import GraphOptions
from DeepCache.export.tracing import open_sides, read_inputs, trace
from DeepCache.schedule import Step

__all__ = ["Stage", "WantedGraph", "describe_graphs", "example_feature", "write_graphs"]

Stage = Callable[[str], None]
"""Is told what is being done."""

_PROGRESS = "progress.json"
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
    denoiser: nn.Module,
    branch: int,
    wanted: Sequence[WantedGraph],
    options: GraphOptions,
    config: DeepCacheConfig,
    steps: Sequence[Step] = (),
    hashed: str | None = None,
) -> GraphSetDescription:
    """The description of graphs that are not made yet.

    Args:
        denoiser: what they are made of.
        branch: the skip branch of shallow steps.
        wanted: the graphs.
        options: how they are written.
        config: the settings that they are for.
        steps: what each step of a run does.
        hashed: `model_hash` of the denoiser, where it is known.
    """
    hashed = model_hash(denoiser) if hashed is None else hashed
    versions = versions_of((*options.require().packages, *(("nncf",) if options.int8 else ())))
    calls = {each.name: call_signature(each.call.tensors, each.call.constants) for each in wanted}
    key = json.dumps([hashed, branch, calls, asdict(options), versions], sort_keys=True)
    return GraphSetDescription(
        key=hashlib.sha256(key.encode()).hexdigest(),
        format=options.format,
        branch=branch,
        denoiser=f"{type(denoiser).__module__}.{type(denoiser).__qualname__}",
        config=json.loads(json.dumps(dict(getattr(denoiser, "config", {})), default=str)),
        dtype=str(next(denoiser.parameters()).dtype).removeprefix("torch."),
        prompt_half=layout_of(denoiser).prompt_half,
        fingerprint=fingerprint(denoiser),
        model_hash=hashed,
        settings=config.to_dict(),
        steps=tuple("full" if step.full else "skipped" if step.skipped else "shallow" for step in steps),
        forecast_order=config.highest_order,
        versions=versions,
    )


def write_graphs(
    denoiser: nn.Module,
    folder: Path,
    description: GraphSetDescription,
    wanted: Sequence[WantedGraph],
    options: GraphOptions,
    stage: Stage,
) -> GraphSetDescription:
    """Writes graphs and their description into a folder, which appears once all are there, in place of what it was.

    Args:
        denoiser: what the graphs are made of.
        folder: where to write.
        description: the description, without graphs.
        wanted: the graphs.
        options: how they are written.
        stage: is told what is being done.

    Raises:
        ValueError: the denoiser cannot be traced, or a graph not written or run, or it differs from PyTorch.
        OSError: the disk has not enough space.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    with _one_process_at_a_time(folder):
        done = _resumed(unfinished, description.key)
        _check_space(denoiser, [each for each in wanted if each.name not in done], folder.parent)
        for each in wanted:
            if each.name in done:
                stage(f"{each.name}: found from an interrupted export")
                continue
            done[each.name] = _write_graph(denoiser, unfinished, description.branch, each, options, stage)
            _note_progress(unfinished, description.key, done)
        finished = replace(description, graphs={each.name: done[each.name] for each in wanted})
        finished.write(unfinished)
        (unfinished / _PROGRESS).unlink()
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    return finished


def _one_process_at_a_time(folder: Path) -> FileLock:
    """A lock that leaves no file beside the folder."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]
    return FileLock(Path(tempfile.gettempdir()) / f"deepcache-{name}.lock")


def _resumed(unfinished: Path, key: str) -> dict[str, GraphDescription]:
    """What an interrupted export of the same graphs has finished. What is of another export is removed."""
    try:
        progress = json.loads((unfinished / _PROGRESS).read_text(encoding="utf-8"))
        graphs = {name: GraphDescription.from_dict(each) for name, each in progress["graphs"].items()}
        if progress["key"] == key:
            return graphs
    except (OSError, ValueError, KeyError, TypeError):
        pass
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    return {}


def _note_progress(unfinished: Path, key: str, done: dict[str, GraphDescription]) -> None:
    text = json.dumps({"key": key, "graphs": {name: asdict(each) for name, each in done.items()}})
    written = unfinished / f"{_PROGRESS}.new"
    written.write_text(text, encoding="utf-8")
    written.replace(unfinished / _PROGRESS)


def _check_space(denoiser: nn.Module, wanted: Sequence[WantedGraph], folder: Path) -> None:
    weights = sum(parameter.nbytes for parameter in denoiser.parameters())
    needed = int(1.1 * weights) * sum(each.feature is None for each in wanted)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"the graphs need about {needed / 1e9:.1f} GB in {str(folder)!r}, where {free / 1e9:.1f} GB are free. Make "
            "room, or name a folder on another disk"
        )


def _write_graph(
    denoiser: nn.Module, folder: Path, branch: int, wanted: WantedGraph, options: GraphOptions, stage: Stage
) -> GraphDescription:
    fmt, path = options.require(), folder / f"{wanted.name}{options.require().suffix}"
    with torch.no_grad():
        graph = _step(denoiser, branch, wanted, fmt)
        random = _random_inputs(graph)
        expected = graph(*random.values())
        stage(f"{wanted.name}: tracing")
        with merged_adapters(denoiser) as adapters:
            if adapters and _LORA_SCALE in wanted.call.constants:
                raise ValueError(
                    f"the adapters {', '.join(adapters)} become part of the weights, and the call scales them by "
                    f"{wanted.call.constants[_LORA_SCALE]}. Leave the scale out of cross_attention_kwargs and use "
                    "pipe.set_adapters"
                )
            program = trace(graph, options.dynamic)
            if isinstance(graph, ShallowGraph):
                used = read_inputs(graph, program)
                if used != frozenset(graph.inputs):
                    graph = _step(denoiser, branch, wanted, fmt, used)
                    program = trace(graph, options.dynamic)
            names = _names(graph, options.names)
            stage(f"{wanted.name}: writing")
            _save(fmt, program, path, names[: len(graph.inputs)], names[len(graph.inputs) :], options.int8)
        del program
        stage(f"{wanted.name}: comparing with PyTorch")
        dtype = next(denoiser.parameters()).dtype
        found = _run(fmt, path, dtype, [random[name] for name in graph.inputs])
    difference = _compare(wanted.name, expected, found, fmt, dtype, options.int8)
    files = [each for each in folder.iterdir() if each.name.split(".")[0] == wanted.name]
    sides = [*graph.inputs.items(), *zip(graph.outputs, expected, strict=True)]
    batch = len(next(iter(graph.inputs.values())))
    tensors = [
        _describe(name, argument, tensor, open_sides(argument, tensor, batch) if options.dynamic else ())
        for name, (argument, tensor) in zip(names, sides, strict=True)
    ]
    return GraphDescription(
        step="full" if wanted.feature is None else "shallow",
        file=path.name,
        inputs=tuple(tensors[: len(graph.inputs)]),
        outputs=tuple(tensors[len(graph.inputs) :]),
        unread=tuple(name for name in wanted.call.tensors if name not in graph.inputs),
        constants=dict(wanted.call.constants),
        bytes=sum(each.stat().st_size for each in files),
        largest_difference=difference,
    )


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
) -> FullGraph | ShallowGraph:
    branch = branch_of(denoiser, number)
    if wanted.feature is None:
        return FullGraph(denoiser, branch, wanted.call, fmt.outside)
    return ShallowGraph(denoiser, branch, wanted.call, wanted.feature, fmt.outside, used)


def _random_inputs(graph: FullGraph | ShallowGraph) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point() or tensor.ndim < 2:
            # Timesteps, sizes and masks have a meaning.
            return tensor
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    return {name: random(name, tensor) for name, tensor in graph.inputs.items()}


def _names(graph: FullGraph | ShallowGraph, others: dict[str, str]) -> list[str]:
    """The names of inputs and outputs, in order."""
    own = {name: name.replace(".", "_") for name in (*graph.inputs, *graph.outputs)}
    names = [others.get(own[name], own[name]) for name in (*graph.inputs, *graph.outputs)]
    if len({*names}) < len(names):
        raise ValueError(f"names must differ, got {', '.join(names)}")
    return names


def _describe(name: str, argument: str, tensor: torch.Tensor, open_sides: Sequence[int]) -> TensorDescription:
    shape = tuple(None if side in open_sides else length for side, length in enumerate(tensor.shape))
    return TensorDescription(name, argument, shape, str(tensor.dtype).removeprefix("torch."))


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
