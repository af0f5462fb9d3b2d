"""`deepcache export`: the U-Net of a model as graphs for other runtimes."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from DeepCache.cli.options import (
    Between,
    Branch,
    Device,
    Dtype,
    ForcePlan,
    Forecast,
    GuidanceReuse,
    Interval,
    Json,
    PlanFile,
    Scheduler,
    SkipMode,
    Threshold,
    deepcache_config,
)
from DeepCache.config import DeepCacheConfig

if TYPE_CHECKING:
    from DeepCache.export import GraphSetDescription

__all__ = ["export_command"]

_GRAPHS, _CALL, _OUTPUT = "Graphs", "Call that they are for", "Output"
_DEFAULT = DeepCacheConfig()


def export_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name (shapes comes with DeepCache; sd15, sdxl, … get random weights), a folder, or owner/name on "
            "the hub.",
        ),
    ] = "shapes",
    graph_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="torch (torch.export), onnx (takes DeepCache[onnx]) or openvino (takes DeepCache[openvino]).",
            rich_help_panel=_GRAPHS,
        ),
    ] = "openvino",
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="Keep weights as integers of 8 bits: a quarter of the size, less faithful. With openvino; takes NNCF.",
            rich_help_panel=_GRAPHS,
        ),
    ] = False,
    dynamic: Annotated[
        bool,
        typer.Option(
            "--dynamic",
            help="Leave batch, height and width open, for several sizes. Takes longer to export.",
            rich_help_panel=_GRAPHS,
        ),
    ] = False,
    names: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=NEW,…",
            help="Other names for inputs and outputs, such as deep_in=state,deep_out=next_state.",
            show_default=False,
            rich_help_panel=_GRAPHS,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            help="In pixels; one number for a square.",
            show_default="the model's own",
            rich_help_panel=_CALL,
        ),
    ] = None,
    images: Annotated[int, typer.Option(help="Images in one call of the pipeline.", rich_help_panel=_CALL)] = 1,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Guidance scale; above 1 the graphs take two samples for each image.",
            show_default="recommended for the model",
            rich_help_panel=_CALL,
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option(help="Denoising steps, for the schedule in the description.", rich_help_panel=_CALL)
    ] = 50,
    scheduler: Scheduler = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    interval: Interval = _DEFAULT.cache_interval,
    branch: Branch = _DEFAULT.cache_branch_id,
    skip_mode: SkipMode = _DEFAULT.skip_mode,
    threshold: Threshold = None,
    between: Between = _DEFAULT.between,
    forecast: Forecast = _DEFAULT.forecast,
    guidance_reuse: GuidanceReuse = False,
    plan: PlanFile = None,
    force_plan: ForcePlan = False,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Where to write; it is created.", rich_help_panel=_OUTPUT
        ),
    ] = Path("graphs"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the graphs in the folder.", rich_help_panel=_OUTPUT)
    ] = False,
    as_json: Json = False,
) -> None:
    """Export a U-Net as a graph of a full step and one of a shallow step.

    Each graph is compared with PyTorch on random inputs. deepcache-graphs.json beside them describes inputs, outputs
    and the schedule. An export that was interrupted resumes with the same command.

    Example: deepcache export shapes --format onnx --output graphs
    """
    from DeepCache.generation import parse_size

    config = deepcache_config(
        interval, branch, skip_mode, forecast, guidance_reuse, plan, force_plan, "none", between, threshold
    )
    renamed = _names(names)
    for name, value in (("--images", images), ("--steps", steps)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")

    from DeepCache.cli.loading import load, quiet_libraries

    with quiet_libraries():
        from DeepCache.export import export_graphs
        from DeepCache.export.formats import GraphOptions

    # What is wrong here is reported before the model is loaded.
    GraphOptions(graph_format, int8, dynamic, renamed).require()
    stderr = Console(stderr=True, markup=False)
    pipe = load(model, dtype=dtype, device=device, console=stderr)

    from DeepCache.bench.workload import PipelineCall, default_size
    from DeepCache.models import recommended_guidance, set_scheduler

    if scheduler is not None:
        set_scheduler(pipe, scheduler)
    pixels = default_size(pipe) if size is None else parse_size(size)
    scale = recommended_guidance(model, pipe) if guidance is None else guidance
    call = PipelineCall(images, pixels, steps, scale).arguments(pipe)
    status = stderr.status("") if stderr.is_terminal else None

    def on_stage(text: str) -> None:
        if status is not None:
            status.update(escape(f"{text} …"))
        else:
            stderr.print(text, highlight=False, soft_wrap=True)

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
        print(json.dumps({"folder": str(output), **asdict(found)}, indent=2))
        return
    _print(found, output)


def _names(text: str | None) -> dict[str, str]:
    pairs = [part.partition("=") for part in (text or "").split(",") if part.strip()]
    for old, _, new in pairs:
        if not old.strip() or not new.strip():
            raise ValueError(f"--names must be NAME=NEW with commas between, such as deep_in=state, got {text!r}")
    return {old.strip(): new.strip() for old, _, new in pairs}


def _print(found: GraphSetDescription, folder: Path) -> None:
    from DeepCache.text import format_bytes

    console = Console(markup=False)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in ("graph", "file", "size", "difference"):
        table.add_column(name, justify="right" if name in ("size", "difference") else "left", no_wrap=True)
    for name, graph in found.graphs.items():
        table.add_row(name, graph.file, format_bytes(graph.bytes), f"{graph.largest_difference:.1e}")
    console.print(table)
    console.print(
        f"\ncut at branch {found.branch}. difference: the largest from PyTorch on random inputs, as a share of the "
        "largest value.\nThe weights and active adapters are part of the graphs: export again after changing them.\n",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )
    print(folder)
