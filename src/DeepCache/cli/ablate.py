"""`deepcache ablate`: fidelity against cost for many settings."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from DeepCache.cli.options import MODEL_PANEL, Device, Dtype, Guidance, Model, Threads, check_output, numbers, words
from DeepCache.cli.progress import WorkDisplay

__all__ = ["ablate_command"]

_GRID, _PROMPTS, _OUTPUT = "Grid (lists have commas between their parts)", "Prompts", "Output"
_GUIDANCE_REUSE = {"off": (False,), "on": (True,), "both": (False, True)}


def ablate_command(
    model: Model = "shapes",
    guidance: Guidance = None,
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
        str, typer.Option(metavar="NAMES", help="uniform, non-uniform.", rich_help_panel=_GRID)
    ] = "uniform",
    forecasts: Annotated[
        str, typer.Option(metavar="NAMES", help="none, linear, quadratic.", rich_help_panel=_GRID)
    ] = "none,linear",
    guidance_reuse: Annotated[
        str, typer.Option(metavar="WHICH", help="off, on or both.", rich_help_panel=_GRID)
    ] = "off",
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            "-v",
            metavar="SETTINGS",
            help="One more setting beside the grid, such as 'I=3 linear guidance-reuse' or 'plan=FILE'; repeat it for "
            "more. A plan is drawn with the scheduler and the steps that it was tuned for.",
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
        Path | None,
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
) -> None:
    """Measure cost and fidelity over intervals, branches, schedules, forecasts, schedulers and steps.

    Every setting draws the same prompts from the same latents as the pipeline without caching, and so do fewer steps at
    like costs. Ctrl-C loses nothing: the same command goes on. `deepcache report` makes a page of the result.

    Example: deepcache ablate --intervals 2,3,5 --branches 0,1 --schedulers ddim,euler --output ablation.json
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
    )
    settings = AblationSettings(
        prompts=prompts,
        variants=tuple(dict.fromkeys(chain(listed, more))),
        model=model,
        schedulers=words(schedulers) if schedulers is not None else (),
        steps=numbers("steps", steps),
        # So far apart that no two images come from the same latents.
        seeds=tuple(seed + place * len(prompts) for place in range(seeds)),
        guidance=guidance,
        size=None if size is None else parse_size(size),
        batch=batch,
        dtype=dtype,
        samples=samples,
        clip=clip,
    )
    stderr = Console(stderr=True)
    set_threads(threads)
    try:
        with quiet_libraries(), WorkDisplay(stderr) as display:
            result = run_ablation(settings, output, device, display)
    except KeyboardInterrupt:
        going_on = f"Stopped. The same command goes on from {output}."
        stderr.print(going_on, soft_wrap=True, highlight=False, markup=False)
        raise typer.Exit(130) from None
    for metric, reason in result["settings"]["left_out"].items():
        stderr.print(f"{metric.upper()} is left out: {reason}.", soft_wrap=True, highlight=False, markup=False)
    _print(result)
    print(output)


def _print(result: dict[str, Any]) -> None:
    console = Console()
    for group in result["groups"]:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        table.add_column("settings", min_width=10)
        for name in ("MACs", "PSNR", "SSIM"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("beaten by", min_width=10)
        for cell in sorted(group["cells"], key=lambda cell: -float(cell["mac_share"])):
            beaten = cell["dominated_by"]
            table.add_row(
                Text(cell["label"]),
                f"{cell['mac_share']:.1%}",
                f"{cell['psnr']['mean']:.1f} dB",
                f"{cell['ssim']['mean']:.4f}",
                Text("" if beaten is None else f"{beaten['label']}, +{beaten['psnr_gain']:.1f} dB"),
                style=None if cell["front"] else "dim",
            )
        console.print(f"{group['scheduler_class']}, {group['steps']} steps", highlight=False)
        console.print(table)
    console.print(
        "\nMACs: the U-Net's multiply-accumulates, as a share of those without DeepCache.\n"
        "beaten by: what costs no more and comes nearer; what has none is on the Pareto front.\n",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )
