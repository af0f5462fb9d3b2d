"""`deepcache benchmark`: the speed-up of a pipeline with DeepCache."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from DeepCache.cli.console import explain, note, print_json, print_table, table
from DeepCache.cli.options import (
    Device,
    Json,
    Model,
    Scheduler,
    Steps,
    Threads,
    Variants,
    check_output,
    grid_option,
    model_option,
    numbers,
    output_option,
    output_path,
    words,
)
from DeepCache.cli.progress import work_display
from DeepCache.text import format_bytes

if TYPE_CHECKING:
    from DeepCache.bench.benchmark import BenchmarkSettings

_timing_option = partial(typer.Option, rich_help_panel="Timing")
_KIND_WIDTH, _STEP_WIDTH = 22, 16


def benchmark_command(
    model: Model = "shapes",
    scheduler: Scheduler = None,
    steps: Steps = 50,
    guidance: float | None = model_option(None, help="Guidance scale.", show_default="recommended for the model"),
    device: Device = "auto",
    variants: Variants = None,
    sizes: str | None = grid_option(
        None, metavar="SIZES", help="Sizes in pixels, such as 512,768x512.", show_default="the model's own"
    ),
    batches: str = grid_option("1", metavar="NUMBERS", help="Images per pipeline call, such as 1,4,8."),
    dtypes: str = grid_option(
        "auto", metavar="NAMES", help="float32, float16, bfloat16; auto is float16 on CUDA and float32 elsewhere."
    ),
    modes: str = grid_option(
        "eager",
        metavar="NAMES",
        help="eager; with torch.compile: regional (transformer blocks), compiled (U-Net), captured (with CUDA "
        "graphs), autotuned (with CUDA graphs and the fastest kernels); openvino, onnx: graphs on the CPU, without "
        "the reference package.",
    ),
    scopes: str = grid_option(
        "pipeline,unet", metavar="NAMES", help="pipeline (the whole call), unet (the U-Net calls only)."
    ),
    reference: Path | None = grid_option(
        None,
        metavar="PATH",
        help="Wheel of the reference package, DeepCache 0.1.1, or the folder it is unpacked to; it is measured in "
        "turn with the others.",
    ),
    fewer_steps: bool = grid_option(
        True,
        "--fewer-steps/--no-fewer-steps",
        help="Also measure fewer steps without caching at the cost of each variant.",
    ),
    rounds: int = _timing_option(5, help="Rounds; each round times everything once, in turn."),
    warm_up: int = _timing_option(1, help="Warm-up rounds, which are discarded."),
    threads: Threads = None,
    stop_after: float | None = _timing_option(
        None,
        metavar="MINUTES",
        help="Start no round that would end later than this; the same command resumes. At least one round is measured.",
    ),
    seed: int = _timing_option(0, help="Seed of the latents."),
    output: Path = output_path(
        "benchmark.json",
        "FILE",
        "Result file, written after every round; measurements in an existing file are not repeated.",
    ),
    profile: Path | None = output_option(
        None,
        metavar="FOLDER",
        help="Also profile full and shallow steps for each size, batch, dtype and mode, and write the result and "
        "Chrome traces to this folder.",
    ),
    as_json: Json = False,
) -> None:
    """Measure the speed of a pipeline with DeepCache, without it, and with fewer steps.

    All variants (by default I=3 B=0, I=5 B=0 and I=5 B=1) run in turn, so that other load on the machine affects all of
    them alike. The model may be the name of an architecture (sd15, sd21, sdxl, ...), which is built with random weights
    and needs no download. The same command resumes after Ctrl-C. `deepcache report` creates a page from the result.

    Example: deepcache benchmark --model sd21 --sizes 512,768 --batches 1,4 --output sd21.json
    """
    from DeepCache.bench.variants import PUBLISHED_VARIANTS, parse_variant

    chosen = tuple(parse_variant(text) for text in variants) if variants else PUBLISHED_VARIANTS
    check_output(output)
    if stop_after is not None and not stop_after > 0:
        raise ValueError(f"--stop-after must be above 0 minutes, got {stop_after:g}")

    from DeepCache.bench.benchmark import BenchmarkSettings, is_complete, run_benchmark
    from DeepCache.cli.loading import set_threads
    from DeepCache.generation import parse_size

    settings = BenchmarkSettings(
        model=model,
        variants=chosen,
        sizes=tuple(map(parse_size, sizes.split(","))) if sizes is not None else (),
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
        _check_profile(settings, profile, device)
    set_threads(threads)
    with work_display(output) as display:
        seconds = None if stop_after is None else 60 * stop_after
        result = run_benchmark(settings, output, device, display, seconds)
    if as_json:
        print_json(result)
    else:
        _print(result)
    if not is_complete(result):
        note(f"Stopped after {stop_after:g} minutes. The same command resumes.")
    if not as_json:
        print(output)
    if profile is not None:
        _profile(settings, result, profile, device)


def _check_profile(settings: BenchmarkSettings, folder: Path, device: str) -> None:
    from DeepCache.bench.benchmark_case import GRAPHS
    from DeepCache.bench.profiles import check_profile

    check_profile(folder, device)
    if graphs := [mode for mode in settings.modes if mode in GRAPHS]:
        raise ValueError(f"--profile requires PyTorch, and cannot be combined with the mode {graphs[0]}. Remove one")


def _profile(settings: BenchmarkSettings, measured: dict[str, Any], folder: Path, device: str) -> None:
    from DeepCache.bench.profiles import PROFILE_FILE, run_profile

    # The profiler logs when it starts and stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    message = "Stopped. The benchmark is complete; finished profiles are in {}.".format
    with work_display(folder, message) as display:
        result = run_profile(settings, measured, folder, device, display)
    _print_profiles(result)
    for found in result["profiles"]:
        if found["trace"]:
            print(folder / found["trace"])
    print(folder / PROFILE_FILE)


def _print(result: dict[str, Any]) -> None:
    for cell in result["cells"]:
        if cell["status"] == "waiting":
            continue
        scope = "U-Net alone" if cell["scope"] == "unet" else "whole pipeline"
        reason = f" ({cell['reason']})" if cell["reason"] else ""
        print(
            f"{cell['width']}×{cell['height']}, batch {cell['batch']}, {cell['dtype']}, {cell['mode']}, {scope}: "
            f"{cell['status']}{reason}"
        )
        if not any(row["seconds"] for row in cell["rows"]):
            continue
        _print_rows(cell["rows"])
        for row in cell["rows"]:
            if row["error"]:
                print(f"{row['method']}, {row['variant']} failed: {row['error']}")
    explain(
        "\nseconds: median. speed-up: median over the rounds of the time without caching divided by this time.\n"
        "limit: speed-up of the U-Net if time were proportional to multiply-accumulates. of it: the share reached.\n"
        "kept: memory for features between steps.\n"
    )


def _print_rows(rows: list[dict[str, Any]]) -> None:
    columns = ["seconds", "speed-up", "limit", "of it", "kept"]
    if any(row["peak_memory"] is not None for row in rows):
        columns.append("peak")
    shown = table("", "settings", *columns, text=["", "settings"])
    for row in rows:
        shown.add_row(row["method"], row["variant"], *_figures(row)[: len(columns)])
    print_table(shown)


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
    for found in result["profiles"]:
        title = "{width}×{height}, batch {batch}, {dtype}, {mode}".format(**found)
        reason = f" ({found['reason']})" if found["reason"] else ""
        print(f"\n{title}: time per step{reason}")
        fitting = max(1, (Console().width - _KIND_WIDTH) // (_STEP_WIDTH + 1))
        for first in range(0, len(found["steps"]), fitting):
            _print_profile(found["steps"][first : first + fitting], result["device"]["type"])
    explain(
        "\nMedians of the U-Net calls. The profiler slows them down: use its shares, and the time without it.\n"
        "the rest: time without an operation (on a GPU, without a kernel): Python, launches, waiting.\n"
        "Open a Chrome trace in https://ui.perfetto.dev; it names the steps.\n"
    )


def _print_profile(steps: list[dict[str, Any]], device: str) -> None:
    shown = table()
    shown.add_column("", no_wrap=True, min_width=_KIND_WIDTH - 1)
    for step in steps:
        shown.add_column(step["step"], justify="right", width=_STEP_WIDTH)
    for kind in steps[0]["kinds"]:
        figures = [step["kinds"][kind] for step in steps]
        if any(each["median"] for each in figures):
            shown.add_row(kind, *(f"{_show_time(each['median'])} {each['share']:>6.1%}" for each in figures))
    shown.add_section()
    totals = {
        "total": [sum(each["median"] for each in step["kinds"].values()) for step in steps],
        "without the profiler": [step["median"] for step in steps],
    }
    if device != "cpu":
        totals["DeepCache's Python"] = [median(step["hooks_seconds"]) for step in steps]
    for name, times in totals.items():
        shown.add_row(name, *(_show_time(seconds) + " " * 7 for seconds in times))
    print_table(shown)


def _show_time(seconds: float) -> str:
    milliseconds = 1000 * seconds
    return f"{milliseconds:.0f} ms" if milliseconds >= 1000 else f"{milliseconds:.2f} ms"
