"""`deepcache ablate`: fidelity against cost for many settings."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from DeepCache.cli.interruption import INTERRUPTED, stopped
from DeepCache.cli.options import (
    MODEL_PANEL,
    Device,
    Dtype,
    Guidances,
    Json,
    Model,
    Threads,
    check_output,
    guidance_scales,
    numbers,
    words,
)
from DeepCache.cli.progress import WorkDisplay
from DeepCache.config import DeepCacheConfig
from DeepCache.schedule import BETWEEN, FORECASTS, SKIP_MODES

__all__ = ["ablate_command"]

_GRID, _PROMPTS, _OUTPUT = "Grid (lists have commas between their parts)", "Prompts", "Output"
# Re-use, which all others are compared with, linear, and the default where that is another.
_DEFAULT_FORECASTS = ",".join(dict.fromkeys(("none", "linear", DeepCacheConfig().forecast)))
_GUIDANCE_REUSE = {"off": (False,), "on": (True,), "both": (False, True)}


def ablate_command(
    model: Model = "shapes",
    guidance: Guidances = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            help="In pixels; one number for a square.",
            show_default="the model's own",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    intervals: Annotated[str, typer.Option(metavar="NUMBERS", help="Intervals.", rich_help_panel=_GRID)] = "2,3,5,10",
    branches: Annotated[str, typer.Option(metavar="NUMBERS", help="Skip branches.", rich_help_panel=_GRID)] = "0,1,2",
    schedules: Annotated[
        str, typer.Option(metavar="NAMES", help=f"{', '.join(SKIP_MODES)}.", rich_help_panel=_GRID)
    ] = "uniform",
    forecasts: Annotated[
        str, typer.Option(metavar="NAMES", help=f"{', '.join(FORECASTS)}.", rich_help_panel=_GRID)
    ] = _DEFAULT_FORECASTS,
    between: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help=f"What the steps between full ones are: {', '.join(BETWEEN)}. Combinations that cannot be, such as "
            "forecast response with shallow steps, are left out.",
            rich_help_panel=_GRID,
        ),
    ] = DeepCacheConfig().between,
    guidance_reuse: Annotated[
        str, typer.Option(metavar="WHICH", help="off, on or both.", rich_help_panel=_GRID)
    ] = "off",
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            "-v",
            metavar="SETTINGS",
            help="One more setting beside the grid, such as 'I=3 linear guidance-reuse', 'I=3 response skipped', "
            "'I=8 limited adaptive threshold=0.2' or 'plan=FILE'; repeat it for more. A plan is used "
            "with the scheduler, the steps and the guidance scales that it was tuned for.",
            rich_help_panel=_GRID,
        ),
    ] = None,
    schedulers: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="ddim, dpm++, euler, …", show_default="the model's own", rich_help_panel=_GRID
        ),
    ] = None,
    steps: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Numbers of denoising steps.", rich_help_panel=_GRID)
    ] = "50",
    prompt_file: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Prompts: a text file with one a line, .jsonl, .csv, .tsv (PartiPrompts), or COCO's "
            "captions_val2017.json.",
            show_default="prompts that come with DeepCache",
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            help="Draw that many of the prompts, chosen by --seed.", show_default="all", rich_help_panel=_PROMPTS
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How often each prompt is drawn.", rich_help_panel=_PROMPTS)] = 1,
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of the first prompt; each further one has the next number. It chooses the prompts too, with "
            "--count.",
            rich_help_panel=_PROMPTS,
        ),
    ] = 0,
    batch: Annotated[int, typer.Option(help="Images in one pipeline call.", rich_help_panel=_PROMPTS)] = 8,
    threads: Threads = None,
    clip: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Model of the CLIP score, a folder or hub id; left out where it is not on this machine, and so is "
            "LPIPS.",
            rich_help_panel=_OUTPUT,
        ),
    ] = "openai/clip-vit-large-patch14",
    judge: Annotated[
        bool,
        typer.Option(
            help="Count the objects with the right colour, shape and place, where the model has a judge (shapes, with "
            "its own captions).",
            rich_help_panel=_OUTPUT,
        ),
    ] = True,
    samples: Annotated[
        int, typer.Option(help="Images of each setting to keep as pictures: the first ones.", rich_help_panel=_OUTPUT)
    ] = 4,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where to write the result, after every setting; what is there already is not drawn again. Pictures "
            "go into a folder beside it.",
            rich_help_panel=_OUTPUT,
        ),
    ] = Path("ablation.json"),
    as_json: Json = False,
) -> None:
    """Measure cost and fidelity over intervals, branches, forecasts, guidance scales, schedulers and steps.

    Every setting generates the same prompts from the same latents as the pipeline without caching, and so do fewer
    steps at like costs. Ctrl-C loses nothing: the same command resumes. `deepcache report` makes a page of the result.

    Example: deepcache ablate --intervals 2,3,5 --guidance 2,4,7.5 --schedulers ddim,dpm++ --output ablation.json
    """
    from DeepCache.bench.variants import parse_variant
    from DeepCache.generation import parse_size
    from DeepCache.prompts import bundled_prompts, read_prompts, sample_prompts

    check_output(output, "the result", "ablation.json")
    for name, value in (("--seeds", seeds), ("--count", 1 if count is None else count)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if guidance_reuse not in _GUIDANCE_REUSE:
        raise ValueError(f"--guidance-reuse is one of {', '.join(_GUIDANCE_REUSE)}, got {guidance_reuse!r}")
    prompts = read_prompts(prompt_file) if prompt_file is not None else bundled_prompts(model)
    if count is not None:
        prompts = sample_prompts(prompts, count, seed)
    more = [parse_variant(text) for text in variants or ()]

    from DeepCache.bench.ablation import AblationSettings, grid, run_ablation
    from DeepCache.cli.loading import quiet_libraries, set_threads

    listed = grid(
        numbers("intervals", intervals),
        numbers("branches", branches),
        words(schedules),
        words(forecasts),
        _GUIDANCE_REUSE[guidance_reuse],
        words(between),
    )
    settings = AblationSettings(
        prompts=prompts,
        variants=tuple(dict.fromkeys(chain(listed, more))),
        model=model,
        schedulers=words(schedulers) if schedulers is not None else (),
        steps=numbers("steps", steps),
        # So far apart that no two images come from the same latents.
        seeds=tuple(seed + place * len(prompts) for place in range(seeds)),
        guidances=() if guidance is None else guidance_scales(guidance),
        size=None if size is None else parse_size(size),
        batch=batch,
        dtype=dtype,
        samples=samples,
        clip=clip,
        judge=judge,
    )
    stderr = Console(stderr=True, markup=False)
    set_threads(threads)
    try:
        with quiet_libraries(), WorkDisplay(stderr) as display:
            result = run_ablation(settings, output, device, display)
    except KeyboardInterrupt:
        going_on = stopped(output)
        stderr.print(going_on, soft_wrap=True, highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    for metric, reason in result["settings"]["left_out"].items():
        stderr.print(f"{metric.upper()} is left out: {reason}.", soft_wrap=True, highlight=False)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    _print(result)
    print(output)


def _print(result: dict[str, Any]) -> None:
    from DeepCache.bench.guidance_scale import guidance_in_words

    console = Console(markup=False)
    for group in result["groups"]:
        reference = group["reference"] or {}
        judged = reference.get("right") is not None
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        table.add_column("settings", min_width=10)
        for name in ("MACs", "PSNR", "5 %", "SSIM"):
            table.add_column(name, justify="right", no_wrap=True)
        if judged:
            table.add_column("right objects", justify="right")
        table.add_column("over re-use", justify="right", no_wrap=True)
        table.add_column("beaten by", min_width=10)
        if judged:
            table.add_row("no caching", "100.0%", "", "", "", f"{reference['right']['mean']:.1%}", "", "")
        for cell in sorted(group["cells"], key=lambda cell: -float(cell["mac_share"])):
            beaten = cell["dominated_by"]
            table.add_row(
                Text(cell["label"]),
                f"{cell['mac_share']:.1%}",
                f"{cell['psnr']['mean']:.1f} dB",
                f"{cell['psnr']['p5']:.1f}",
                f"{cell['ssim']['mean']:.4f}",
                *([f"{cell['right']['mean']:.1%}"] if judged else []),
                _gain(cell["over_reuse"]),
                Text("" if beaten is None else f"{beaten['label']}, +{beaten['psnr_gain']:.1f} dB"),
                style=None if cell["front"] else "dim",
            )
        title = f"{group['scheduler_class']}, {group['steps']} steps{guidance_in_words(group['guidance'])}"
        console.print(title, highlight=False)
        console.print(table)
    console.print(
        "\nMACs: the U-Net's multiply-accumulates, as a share of those without DeepCache.\n"
        "5 %: the 5th percentile of PSNR: one image in twenty is further from the original.\n"
        "over re-use: PSNR against re-use at that interval and branch, image by image, with its 95 % interval.\n"
        "beaten by: what costs no more and is closer to the original; what has none is on the Pareto front.\n",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )


def _gain(over_reuse: dict[str, Any] | None) -> str:
    if over_reuse is None:
        return ""
    low, high = over_reuse["psnr"]["confidence"]
    return f"{over_reuse['psnr']['mean']:+.1f} ±{(high - low) / 2:.1f}"
