"""`deepcache benchmark`: how much sooner a pipeline is done with DeepCache."""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from DeepCache.cli.interruption import INTERRUPTED, stopped
from DeepCache.cli.options import (
    MODEL_PANEL,
    Device,
    Guidance,
    Json,
    Model,
    Scheduler,
    Threads,
    check_output,
    numbers,
    sizes,
    words,
)
from DeepCache.cli.progress import WorkDisplay
from DeepCache.text import format_bytes

if TYPE_CHECKING:
    from DeepCache.bench.benchmark import BenchmarkSettings

__all__ = ["benchmark_command"]

_GRID, _TIMING, _OUTPUT = "Grid (lists have commas between their parts)", "Timing", "Output"


def benchmark_command(
    model: Model = "shapes",
    scheduler: Scheduler = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.", rich_help_panel=MODEL_PANEL)] = 50,
    guidance: Guidance = None,
    device: Device = "auto",
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            "-v",
            metavar="SETTINGS",
            help="Settings to measure, such as 'I=5 B=1', 'I=3 linear guidance-reuse', 'I=3 response skipped', "
            "'I=8 limited adaptive threshold=0.2' or 'plan=FILE'; repeat it for more. What is not said is as "
            "published: branch 0, uniform, shallow steps, re-use.",
            show_default="I=3 B=0, I=5 B=0, I=5 B=1",
            rich_help_panel=_GRID,
        ),
    ] = None,
    sizes_wanted: Annotated[
        str | None,
        typer.Option(
            "--sizes",
            metavar="SIZES",
            help="In pixels, such as 512,768x512.",
            show_default="the model's own",
            rich_help_panel=_GRID,
        ),
    ] = None,
    batches: Annotated[
        str,
        typer.Option(metavar="NUMBERS", help="Pictures in one pipeline call, such as 1,4,8.", rich_help_panel=_GRID),
    ] = "1",
    dtypes: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="float32, float16, bfloat16; auto is float16 with CUDA, else float32.",
            rich_help_panel=_GRID,
        ),
    ] = "auto",
    modes: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="eager; torch.compile on the U-Net: regional (its transformer blocks), compiled; and with CUDA graphs "
            "captured, autotuned (the fastest kernels too); openvino and onnx run it as graphs on the CPU, without the "
            "reference package.",
            rich_help_panel=_GRID,
        ),
    ] = "eager",
    scopes: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="pipeline, the whole call; unet, the calls of the U-Net with nothing in between.",
            rich_help_panel=_GRID,
        ),
    ] = "pipeline,unet",
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The wheel of the reference package, DeepCache 0.1.1, or the folder that it is unpacked to: measures "
            "it in turn with the others.",
            rich_help_panel=_GRID,
        ),
    ] = None,
    fewer_steps: Annotated[
        bool,
        typer.Option(
            "--fewer-steps/--no-fewer-steps",
            help="Measure fewer steps without caching, at the cost of each variant, too.",
            rich_help_panel=_GRID,
        ),
    ] = True,
    rounds: Annotated[int, typer.Option(help="How often everything is timed, in turn.", rich_help_panel=_TIMING)] = 5,
    warm_up: Annotated[int, typer.Option(help="Rounds before those, discarded.", rich_help_panel=_TIMING)] = 1,
    threads: Threads = None,
    stop_after: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES",
            help="Begin no round that would end later; the same command goes on. One round is always measured.",
            rich_help_panel=_TIMING,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the latents.", rich_help_panel=_TIMING)] = 0,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where to write the result, after every round; what is there already is not measured again.",
            rich_help_panel=_OUTPUT,
        ),
    ] = Path("benchmark.json"),
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Show where the time of full and shallow steps goes, too, and write that and a chrome trace for each "
            "size, batch, type and mode to this folder.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the speed of a pipeline with DeepCache, without, and with fewer steps.

    All of them run in turn, so that whatever else the machine does hits all alike. The model may be an architecture by
    name, which is built with random weights and needs no download: sd15, sd21, sdxl, … Ctrl-C loses nothing: the same
    command goes on. `deepcache report` makes a page of the result.

    Example: deepcache benchmark --model sd21 --sizes 512,768 --batches 1,4 --output sd21.json
    """
    from DeepCache.bench.variants import PUBLISHED_VARIANTS, parse_variant

    chosen = tuple(parse_variant(text) for text in variants) if variants else PUBLISHED_VARIANTS
    check_output(output, "the result", "benchmark.json")
    if stop_after is not None and not stop_after > 0:
        raise ValueError(f"--stop-after must be above 0 minutes, got {stop_after:g}")

    from DeepCache.bench.benchmark import BenchmarkSettings, is_complete, run_benchmark
    from DeepCache.cli.loading import quiet_libraries, set_threads

    settings = BenchmarkSettings(
        model=model,
        variants=chosen,
        sizes=sizes(sizes_wanted) if sizes_wanted is not None else (),
        batches=numbers("batches", batches),
        dtypes=words(dtypes),
        modes=words(modes),
        scopes=words(scopes),
        steps=steps,
        rounds=rounds,
        warm_up=warm_up,
        fewer_steps=fewer_steps,
        scheduler=scheduler,
        guidance=guidance,
        reference=reference,
        seed=seed,
    )
    if profile is not None:
        from DeepCache.bench.contestants import GRAPHS
        from DeepCache.bench.profiles import check_profile

        check_profile(profile, device)
        if graphs := [mode for mode in settings.modes if mode in GRAPHS]:
            raise ValueError(f"--profile looks into PyTorch, and the mode {graphs[0]} runs without it. Leave one out")
    stderr = Console(stderr=True, markup=False)
    seconds = None if stop_after is None else 60 * stop_after
    set_threads(threads)
    with quiet_libraries():
        try:
            with WorkDisplay(stderr) as display:
                result = run_benchmark(settings, output, device, display, seconds)
        except KeyboardInterrupt:
            going_on = stopped(output)
            stderr.print(going_on, soft_wrap=True, highlight=False)
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        _print(result)
    if not is_complete(result):
        stderr.print(f"Stopped after {stop_after:g} minutes. The same command goes on.", highlight=False)
    if not as_json:
        print(output)
    if profile is not None:
        _profile(settings, result, profile, device, stderr)


def _profile(settings: BenchmarkSettings, measured: dict[str, Any], folder: Path, device: str, stderr: Console) -> None:
    from DeepCache.bench.profiles import PROFILE_FILE, run_profile
    from DeepCache.cli.loading import quiet_libraries

    # The profiler tells on stderr when it begins and ends.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with quiet_libraries():
        try:
            with WorkDisplay(stderr) as display:
                result = run_profile(settings, measured, folder, device, display)
        except KeyboardInterrupt:
            kept = f"Stopped. Nothing of the benchmark is lost; the profiles that were finished are in {folder}."
            stderr.print(kept, soft_wrap=True, highlight=False)
            raise typer.Exit(INTERRUPTED) from None
    _print_profiles(result)
    for found in result["profiles"]:
        if found["trace"]:
            print(folder / found["trace"])
    print(folder / PROFILE_FILE)


def _print(result: dict[str, Any]) -> None:
    console = Console(markup=False)
    for cell in result["cells"]:
        if cell["status"] == "waiting":
            continue
        scope = "U-Net alone" if cell["scope"] == "unet" else "whole pipeline"
        console.print(
            f"{cell['width']}×{cell['height']}, batch {cell['batch']}, {cell['dtype']}, {cell['mode']}, {scope}: "
            f"{cell['status']}" + (f" ({cell['reason']})" if cell["reason"] else ""),
            # What an error says may have brackets.
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        if not any(row["seconds"] for row in cell["rows"]):
            continue
        console.print(_table(cell["rows"]))
        for row in cell["rows"]:
            if row["error"]:
                failed = f"{row['method']}, {row['variant']} failed: {row['error']}"
                console.print(failed, highlight=False, soft_wrap=True)
    console.print(
        "\nseconds: median. speed-up: median over the rounds of the seconds without caching over these.\n"
        "limit: the U-Net's speed-up if its multiply-accumulates were all, and the share of it that is reached.\n"
        "kept: memory that holds features between steps.\n",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )


def _table(rows: list[dict[str, Any]]) -> Table:
    columns = ["seconds", "speed-up", "limit", "of it", "kept"]
    if any(row["peak_memory"] is not None for row in rows):
        columns.append("peak")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    # Names may wrap, figures never.
    table.add_column("", min_width=10)
    table.add_column("settings", min_width=10)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["method"], Text(row["variant"]), *_figures(row)[: len(columns)])
    return table


def _figures(row: dict[str, Any]) -> list[str]:
    if row["error"] or row["median"] is None:
        return ["failed" if row["error"] else "–", *["–"] * 5]
    return [
        f"{row['median']:.3g}",
        f"{row['speed_up']:.2f}×",
        "–" if row["limit"] is None else f"{row['limit']:.2f}×",
        "–" if row["share_of_limit"] is None else f"{row['share_of_limit']:.0%}",
        format_bytes(row["bytes_kept"] or 0),
        "–" if row["peak_memory"] is None else format_bytes(row["peak_memory"]),
    ]


def _print_profiles(result: dict[str, Any]) -> None:
    console = Console(markup=False)
    for found in result["profiles"]:
        title = "{width}×{height}, batch {batch}, {dtype}, {mode}".format(**found)
        reason = f" ({found['reason']})" if found["reason"] else ""
        console.print(f"\n{title}: where the time of a step goes{reason}", highlight=False, soft_wrap=True)
        fitting = max(1, (console.width - _KIND_WIDTH) // (_STEP_WIDTH + 1))
        for first in range(0, len(found["steps"]), fitting):
            console.print(_profile_table(found["steps"][first : first + fitting], result["device"]["type"]))
    console.print(
        "\nMedians of the U-Net's calls. The profiler slows them down: go by its shares, and by the time without it.\n"
        "the rest: what no operation, or on a GPU no kernel, fills: Python, launches, waiting.\n"
        "A chrome trace opens in https://ui.perfetto.dev; the steps have their names in it.\n",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )


_KIND_WIDTH, _STEP_WIDTH = 22, 16


def _profile_table(steps: list[dict[str, Any]], device: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True, min_width=_KIND_WIDTH - 1)
    for step in steps:
        table.add_column(step["step"], justify="right", width=_STEP_WIDTH)
    for kind in steps[0]["kinds"]:
        figures = [step["kinds"][kind] for step in steps]
        if any(each["median"] for each in figures):
            table.add_row(kind, *(f"{_show_time(each['median'])} {each['share']:>6.1%}" for each in figures))
    table.add_section()
    for name, times in _in_all(steps, device).items():
        table.add_row(name, *(_show_time(seconds) + " " * 7 for seconds in times))
    return table


def _in_all(steps: list[dict[str, Any]], device: str) -> dict[str, list[float]]:
    rows = {
        "in all": [sum(each["median"] for each in step["kinds"].values()) for step in steps],
        "without the profiler": [step["median"] for step in steps],
    }
    if device != "cpu":
        rows["DeepCache's Python"] = [median(step["hooks_seconds"]) for step in steps]
    return rows


def _show_time(seconds: float) -> str:
    milliseconds = 1000 * seconds
    return f"{milliseconds:.0f} ms" if milliseconds >= 1000 else f"{milliseconds:.2f} ms"
