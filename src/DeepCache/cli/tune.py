"""`deepcache tune`: a plan for a model, a scheduler and a number of steps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from DeepCache.cli.interruption import INTERRUPTED, stopped
from DeepCache.cli.options import (
    MODEL_PANEL,
    Device,
    Dtype,
    Json,
    Model,
    Scheduler,
    check_output,
    guidance_scales,
    numbers,
)
from DeepCache.cli.progress import WorkDisplay

if TYPE_CHECKING:
    from DeepCache.plan import Plan

__all__ = ["tune_command"]

_GOAL, _PROMPTS, _SEARCH, _OUTPUT = "Goal (one of these)", "Prompts", "Search", "Output"


def tune_command(
    cost: Annotated[
        float | None,
        typer.Option(
            help="The most multiply-accumulates of the U-Net, as a share of those without DeepCache, such as 0.3.",
            rich_help_panel=_GOAL,
        ),
    ] = None,
    speed_up: Annotated[
        float | None,
        typer.Option(
            "--speed-up",
            help="The same as a speed-up of the U-Net: 4 is a cost of 0.25.",
            rich_help_panel=_GOAL,
        ),
    ] = None,
    psnr: Annotated[
        float | None,
        typer.Option(help="The least mean PSNR against no caching, in dB.", rich_help_panel=_GOAL),
    ] = None,
    model: Model = "shapes",
    scheduler: Scheduler = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.", rich_help_panel=MODEL_PANEL)] = 50,
    guidance: Annotated[
        str | None,
        typer.Option(
            metavar="SCALES",
            help="Guidance scales, such as 7.5 or 5,7.5: every prompt counts at each, and the plan holds from the "
            "lowest to the highest.",
            show_default="recommended for the model",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    prompt_file: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="A file of prompts: .jsonl, .csv or .tsv with a prompt, caption or text in each row, COCO's captions "
            "as .json, else text with one prompt a line; the first ones are tuned on, the next ones checked on.",
            show_default="prompts that come with DeepCache",
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    tune_on: Annotated[int, typer.Option(help="Prompts to tune on.", rich_help_panel=_PROMPTS)] = 8,
    check_on: Annotated[
        int, typer.Option(help="Prompts to check the winner on, which the search never sees.", rich_help_panel=_PROMPTS)
    ] = 16,
    seed: Annotated[
        int,
        typer.Option(help="Seed of the first prompt; each further one has the next number.", rich_help_panel=_PROMPTS),
    ] = 0,
    batch: Annotated[int, typer.Option(help="Prompts drawn at once.", rich_help_panel=_SEARCH)] = 8,
    evaluations: Annotated[
        int,
        typer.Option(
            help="Schedules to draw at most while searching; more take longer and may find a better one.",
            rich_help_panel=_SEARCH,
        ),
    ] = 40,
    branches: Annotated[
        str,
        typer.Option(
            metavar="NUMBERS",
            help="Skip branches that shallow steps may use, such as 0,1,3; the first is the one to start from.",
            rich_help_panel=_SEARCH,
        ),
    ] = "0",
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where to write the plan; a picture of the frontier goes beside it, as .png.",
            rich_help_panel=_OUTPUT,
        ),
    ] = Path("plan.json"),
    work: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where to keep what was measured: the same command resumes, and another goal starts from what is "
            "known.",
            show_default="named after the plan, ending in -tuning",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Tune a plan: which steps are full, and what each shallow step does.

    Searches on a few prompts, checks the winner on others, and writes a small JSON file for `deepcache generate --plan`
    and `helper.set_params(plan=…)`. A plan is for one model, scheduler and number of steps, and for the guidance scales
    it was tuned at. Ctrl-C loses nothing: the same command resumes.

    Example: deepcache tune --scheduler ddim --steps 50 --cost 0.3 --guidance 5,7.5 --output plan.json
    """
    from DeepCache.generation import GenerationSettings, check_against_pipeline
    from DeepCache.prompts import bundled_prompts, read_prompts
    from DeepCache.tune.search import Goal

    if speed_up is not None and cost is not None:
        raise ValueError("give a cost or a speed-up, not both")
    if speed_up is not None and speed_up <= 1:
        raise ValueError(f"speed-up must be above 1, got {speed_up:g}")
    goal = Goal(cost=1 / speed_up if speed_up is not None else cost, psnr=psnr)
    prompts = read_prompts(prompt_file) if prompt_file is not None else bundled_prompts(model)
    prompts = tuple(dict.fromkeys(prompts))
    if len(prompts) < tune_on + check_on:
        raise ValueError(
            f"there are {len(prompts)} different prompts, and {tune_on} to tune on and {check_on} to check on are "
            "wanted; give more with --prompts, or lower --tune-on or --check-on"
        )
    branch_numbers = numbers("branches", branches)
    guidances = None if guidance is None else guidance_scales(guidance)
    check_output(output, "the plan", "plan.json")
    if output.suffix == ".png":
        raise ValueError(f"{str(output)!r} is where the picture would go: give a name for the plan such as plan.json")

    from DeepCache.cli.loading import load
    from DeepCache.models import recommended_guidance, set_scheduler
    from DeepCache.tune import TuningSettings, tune
    from DeepCache.tune.figure import draw_frontier

    stderr = Console(stderr=True, markup=False)
    pipe = load(model, dtype=dtype, device=device, console=stderr)
    if scheduler is not None:
        set_scheduler(pipe, scheduler)
    if guidances is None:
        recommended = recommended_guidance(model, pipe)
        guidances = () if recommended is None else (recommended,)
    settings = TuningSettings(
        prompts=prompts[:tune_on],
        held_out=prompts[tune_on : tune_on + check_on],
        steps=steps,
        goal=goal,
        model=model,
        guidances=guidances,
        seed=seed,
        batch=batch,
        evaluations=evaluations,
        branches=branch_numbers,
    )
    lowest = settings.scales[0]
    check_against_pipeline(GenerationSettings(prompts=settings.prompts, steps=steps, guidance=lowest, seed=seed), pipe)
    folder = work if work is not None else output.with_name(f"{output.stem}-tuning")
    try:
        with WorkDisplay(stderr) as display:
            plan = tune(pipe, settings, folder, display)
    except KeyboardInterrupt:
        stderr.print(stopped(folder), soft_wrap=True, highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    plan.to_file(output)
    picture: Path | None = output.with_suffix(".png")
    try:
        draw_frontier(plan, output.with_suffix(".png"))
    except ImportError as error:
        stderr.print(f"No picture of the frontier: {error}", soft_wrap=True, highlight=False)
        picture = None
    _print(plan, [str(path) for path in (output, picture) if path is not None], as_json)


def _print(plan: Plan, files: list[str], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"plan": plan.to_dict(), "files": files}, indent=2))
        return
    _print_plan(plan)
    for path in files:
        print(path)


def _print_plan(plan: Plan) -> None:
    from DeepCache.schedule import FORECASTS

    console = Console(markup=False)
    lines = plan.schedule.to_dict()
    halved = lines["guidance_reuse"]
    forecasts = "".join(" " if step.full else str(FORECASTS.index(step.forecast)) for step in plan.schedule.each)
    console.print(
        f"steps      {plan.schedule.pattern(len(plan.schedule.each)).replace('.', '·')}\n"
        f"forecast   {forecasts}\n" + (f"guidance   {halved.replace('.', ' ')}\n" if "x" in halved else ""),
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for name in ("", "cost", "PSNR\npredicted", "PSNR\nmeasured", "SSIM", "seconds"):
        # The names may wrap, the figures never.
        table.add_column(name, justify="right" if name else "left", no_wrap=bool(name), overflow="fold")
    tuning, unseen = plan.results["tuning"], plan.results["held_out"]
    several = len(unseen["scales"]) > 1
    for name, result in (("prompts tuned on", tuning), ("held-out prompts", unseen)):
        table.add_row(name, *_figures(result["measured"], result["predicted"]["psnr"]))
        for scale in result["scales"] if several else ():
            table.add_row(f"  at guidance {scale['guidance']:g}", *_figures(scale["measured"]))
    table.add_section()
    if "uniform" in unseen:
        table.add_row(f"uniform, {unseen['uniform']['name']}", *_figures(unseen["uniform"]))
    fewer = unseen["fewer_steps"]
    table.add_row(f"{fewer['steps']} steps without DeepCache", *_figures(fewer))
    for scale in unseen["scales"] if several else ():
        table.add_row(f"  at guidance {scale['guidance']:g}", *_figures(scale["fewer_steps"]))
    table.add_row("without DeepCache", "100.0%", "", "", "", f"{unseen['seconds_without']:.2f}")
    console.print(table)
    for line in _advice(unseen):
        console.print(line, soft_wrap=True, highlight=False)
    digits = ", ".join(f"{digit} {name}" for digit, name in enumerate(FORECASTS))
    console.print(
        f"\nsteps: F full, · shallow, - skipped. forecast: {digits}. guidance: x where half of the guided batch runs. "
        "Below the line: other ways to generate the held-out prompts.\n",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )


def _advice(unseen: Mapping[str, Any]) -> Iterator[str]:
    """What is better than the plan on the held-out prompts."""
    measured = unseen["measured"]
    if "uniform" in unseen and unseen["uniform"]["psnr"] > measured["psnr"]:
        yield (
            f"On the held-out prompts uniform, {unseen['uniform']['name']} is closer to the original: tune on more "
            "prompts (--tune-on), or use that."
        )
    for scale in unseen["scales"]:
        fewer, own = scale["fewer_steps"], scale["measured"]
        if fewer["psnr"] > own["psnr"]:
            start = "Use" if scale["guidance"] is None else f"At guidance {scale['guidance']:g} use"
            yield (
                f"{start} {fewer['steps']} steps without DeepCache: {fewer['psnr']:.1f} dB at {fewer['cost']:.1%} of "
                f"the cost on the held-out prompts, where the plan has {own['psnr']:.1f} dB at {own['cost']:.1%}."
            )


def _figures(measured: Any, predicted: float | None = None) -> list[str]:
    return [
        f"{measured['cost']:.1%}",
        "" if predicted is None else f"{predicted:.1f} dB",
        f"{measured['psnr']:.1f} dB",
        f"{measured['ssim']:.4f}",
        f"{measured['seconds']:.2f}",
    ]
