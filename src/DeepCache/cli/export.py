"""`deepcache export`: the U-Net of a model as graphs for other runtimes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape

from DeepCache.cli.console import explain, note, print_json, print_table, table
from DeepCache.cli.options import (
    CachingOptions,
    Device,
    Json,
    LoadingOptions,
    ModelArgument,
    output_option,
    output_path,
)

if TYPE_CHECKING:
    from DeepCache.export import GraphSetDescription

_graph_option = partial(typer.Option, rich_help_panel="Graphs")
_call_option = partial(typer.Option, rich_help_panel="Pipeline call the graphs are for")


@dataclass(frozen=True)
class _LoadingOptions(LoadingOptions):
    model: ModelArgument = "shapes"
    device: Device = "cpu"


def export_command(
    loading: _LoadingOptions,
    graph_format: str = _graph_option(
        "openvino",
        "--format",
        help="torch (torch.export), onnx (requires DeepCache[onnx]) or openvino (requires DeepCache[openvino]).",
    ),
    int8: bool = _graph_option(
        False,
        "--int8",
        help="Store weights as 8-bit integers: a quarter of the size, less faithful. Requires openvino and NNCF.",
    ),
    dynamic: bool = _graph_option(
        False, "--dynamic", help="Dynamic batch, height and width, for several sizes. Slower to export."
    ),
    names: str | None = _graph_option(
        None,
        metavar="NAME=NEW,…",
        help="New names of inputs and outputs, such as deep_in=state,deep_out=next_state.",
        show_default=False,
    ),
    size: str | None = _call_option(
        None,
        metavar="WIDTHxHEIGHT",
        help="Size in pixels; a single number for a square.",
        show_default="the model's own",
    ),
    images: int = _call_option(1, help="Images per pipeline call."),
    guidance: float | None = _call_option(
        None,
        help="Guidance scale; above 1 the graphs have two samples per image.",
        show_default="recommended for the model",
    ),
    steps: int = _call_option(50, help="Denoising steps, for the schedule in the description."),
    *,
    caching: CachingOptions,
    output: Path = output_path("graphs", "FOLDER", "Output folder, which is created."),
    overwrite: bool = output_option(False, "--overwrite", help="Replace existing graphs in the output folder."),
    as_json: Json = False,
) -> None:
    """Export a U-Net as a graph for full steps and a graph for shallow steps.

    Each graph is compared with PyTorch on random inputs. deepcache-graphs.json in the output folder describes inputs,
    outputs and the schedule. The same command resumes an interrupted export.

    Example: deepcache export shapes --format onnx --output graphs
    """
    from DeepCache.generation import parse_size

    config = caching.config_for()
    renamed = _names(names)
    for name, value in (("--images", images), ("--steps", steps)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")

    from DeepCache.cli.loading import load, quiet_libraries

    with quiet_libraries():
        from DeepCache.export import export_graphs
        from DeepCache.export.formats import GraphOptions

    # Checked before the model is loaded.
    GraphOptions(graph_format, int8, dynamic, renamed).require()
    pipe = load(loading)

    from DeepCache.bench.workload import PipelineCall, default_size
    from DeepCache.models import recommended_guidance

    pixels = default_size(pipe) if size is None else parse_size(size)
    scale = recommended_guidance(loading.model, pipe) if guidance is None else guidance
    call = PipelineCall(images, pixels, steps, scale).arguments(pipe)
    stderr = Console(stderr=True)
    status = stderr.status("") if stderr.is_terminal else None

    def on_stage(text: str) -> None:
        if status is None:
            note(text)
        else:
            status.update(escape(f"{text} …"))

    with status or nullcontext(), quiet_libraries():
        found = export_graphs(
            pipe,
            output,
            call,
            config,
            format=graph_format,
            int8=int8,
            dynamic=dynamic,
            names=renamed,
            overwrite=overwrite,
            on_stage=on_stage,
        )
    if as_json:
        print_json({"folder": str(output), **asdict(found)})
    else:
        _print(found)
        print(output)


def _names(text: str | None) -> dict[str, str]:
    pairs = [part.partition("=") for part in (text or "").split(",") if part.strip()]
    for old, _, new in pairs:
        if not old.strip() or not new.strip():
            raise ValueError(f"--names must be NAME=NEW separated by commas, such as deep_in=state, got {text!r}")
    return {old.strip(): new.strip() for old, _, new in pairs}


def _print(found: GraphSetDescription) -> None:
    from DeepCache.text import format_bytes

    shown = table("graph", "file", "size", "difference", text=["graph", "file"])
    for name, graph in found.graphs.items():
        shown.add_row(name, graph.file, format_bytes(graph.bytes), f"{graph.largest_difference:.1e}")
    print_table(shown)
    explain(
        f"\nThe cut is at branch {found.branch}. difference: the largest difference from PyTorch on random inputs, "
        "relative to the largest value.\nThe graphs contain the weights and active adapters: export again after "
        "changing them.\n"
    )
