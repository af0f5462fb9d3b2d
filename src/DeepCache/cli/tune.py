"""`deepcache tune`: a plan for a model, a scheduler and a number of steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from DeepCache.cli.console import explain, note, print_json, print_table, table
from DeepCache.cli.options import (
    Guidances,
    Json,
    LoadingOptions,
    PromptFile,
    Steps,
    check_output,
    numbers,
    output_option,
    output_path,
    prompt_option,
)
from DeepCache.cli.progress import show_pattern, work_display

if TYPE_CHECKING:
    from DeepCache.plan import Plan

_goal_option = partial(typer.Option, rich_help_panel="Goal (exactly one)")
_search_option = partial(typer.Option, rich_help_panel="Search")


def tune_command(
    cost: float | None = _goal_option(
        None, help="Largest number of U-Net multiply-accumulates, relative to those without DeepCache, such as 0.3."
    ),
    speed_up: float | None = _goal_option(None, help="The same as a speed-up of the U-Net: 4 is a cost of 0.25."),
    psnr: float | None = _goal_option(None, help="Lowest mean PSNR against no caching, in dB."),
    *,
    loading: LoadingOptions,
    steps: Steps = 50,
    guidance: Guidances = None,
    prompt_file: PromptFile = None,
    tune_on: int = prompt_option(8, help="Prompts for tuning: the first ones."),
    check_on: int = prompt_option(16, help="Held-out prompts to check the best plan: the next ones."),
    seed: int = prompt_option(0, help="Seed of the first prompt; the seeds of the following prompts count up from it."),
    batch: int = _search_option(8, help="Prompts per pipeline call."),
    evaluations: int = _search_option(
        40, help="Most schedules to generate images with; more take longer and can find a better plan."
    ),
    branches: str = _search_option(
        "0", metavar="NUMBERS", help="Skip branches for shallow steps, such as 0,1,3; the search starts with the first."
    ),
    output: Path = output_path("plan.json", "FILE", "Plan file; a plot of the frontier is saved next to it as .png."),
    work: Path | None = output_option(
        None,
        metavar="FOLDER",
        help="Folder for measurements, from which the same command resumes; they are reused for another goal.",
        show_default="the name of the plan with -tuning",
    ),
    as_json: Json = False,
) -> None:
    """Tune a plan: which steps are full, and what each shallow step does.

    Searches on a few prompts, checks the best plan on held-out prompts, and writes a small JSON file for `deepcache
    generate --plan` and `helper.set_params(plan=…)`. A plan is for one model, scheduler and number of steps, and for
    the range of guidance scales it was tuned at. The same command resumes after Ctrl-C.

    Example: deepcache tune --scheduler ddim --steps 50 --cost 0.3 --guidance 5,7.5 --output plan.json
    """
    from DeepCache.generation import GenerationSettings, check_against_pipeline
    from DeepCache.prompts import bundled_prompts, read_prompts
    from DeepCache.tune import Goal

    if speed_up is not None and cost is not None:
        raise ValueError("--cost and --speed-up cannot be combined. Remove one of them")
    if speed_up is not None and speed_up <= 1:
        raise ValueError(f"--speed-up must be above 1, got {speed_up:g}")
    goal = Goal(cost=1 / speed_up if speed_up is not None else cost, psnr=psnr)
    prompts = read_prompts(prompt_file) if prompt_file is not None else bundled_prompts(loading.model)
    prompts = tuple(dict.fromkeys(prompts))
    if len(prompts) < tune_on + check_on:
        raise ValueError(
            f"there are {len(prompts)} different prompts, and {tune_on} to tune on plus {check_on} held out are "
            "required. Add prompts with --prompts, or lower --tune-on or --check-on"
        )
    branch_numbers = numbers("branches", branches)
    guidances = None if guidance is None else numbers("guidance", guidance, float)
    check_output(output)
    if output.suffix == ".png":
        raise ValueError(
            f"--output {str(output)!r} is the name of the plot. Name the plan differently, as in plan.json"
        )

    from DeepCache.cli.loading import load
    from DeepCache.models import recommended_guidance
    from DeepCache.tune import TuningSettings, tune
    from DeepCache.tune.figure import plot_frontier

    pipe = load(loading)
    if guidances is None:
        recommended = recommended_guidance(loading.model, pipe)
        guidances = () if recommended is None else (recommended,)
    settings = TuningSettings(
        prompts=prompts[:tune_on],
        held_out=prompts[tune_on : tune_on + check_on],
        steps=steps,
        goal=goal,
        model=loading.model,
        guidances=guidances,
        seed=seed,
        batch=batch,
        evaluations=evaluations,
        branches=branch_numbers,
    )
    lowest = settings.scales[0]
    check_against_pipeline(GenerationSettings(prompts=settings.prompts, steps=steps, guidance=lowest, seed=seed), pipe)
    folder = work if work is not None else output.with_name(f"{output.stem}-tuning")
    with work_display(folder) as display:
        plan = tune(pipe, settings, folder, display)
    plan.to_file(output)
    files = [str(output)]
    try:
        plot_frontier(plan, output.with_suffix(".png"))
        files.append(str(output.with_suffix(".png")))
    except ImportError as error:
        note(f"No plot of the frontier: {error}")
    if as_json:
        print_json({"plan": plan.to_dict(), "files": files})
        return
    _print_plan(plan)
    print(*files, sep="\n")


def _print_plan(plan: Plan) -> None:
    from DeepCache.schedule import FORECASTS

    steps = plan.schedule.each
    print(f"steps      {show_pattern(plan.schedule.pattern(len(steps)))}")
    print("forecast   " + "".join(" " if step.full else str(FORECASTS.index(step.forecast)) for step in steps))
    halved = plan.schedule.to_dict()["guidance_reuse"]
    if "x" in halved:
        print(f"guidance   {halved.replace('.', ' ')}")
    shown = table("", "cost", "PSNR\npredicted", "PSNR\nmeasured", "SSIM", "seconds", text=[""], space=0)
    tuning, unseen = plan.results["tuning"], plan.results["held_out"]
    several = len(unseen["scales"]) > 1
    for name, result in (("prompts tuned on", tuning), ("held-out prompts", unseen)):
        shown.add_row(name, *_figures(result["measured"], result["predicted"]["psnr"]))
        for scale in result["scales"] if several else ():
            shown.add_row(f"  at guidance {scale['guidance']:g}", *_figures(scale["measured"]))
    shown.add_section()
    if "uniform" in unseen:
        shown.add_row(f"uniform, {unseen['uniform']['name']}", *_figures(unseen["uniform"]))
    fewer = unseen["fewer_steps"]
    shown.add_row(f"{fewer['steps']} steps without DeepCache", *_figures(fewer))
    for scale in unseen["scales"] if several else ():
        shown.add_row(f"  at guidance {scale['guidance']:g}", *_figures(scale["fewer_steps"]))
    shown.add_row("without DeepCache", "100.0%", "", "", "", f"{unseen['seconds_without']:.2f}")
    print_table(shown)
    for line in _advice(unseen):
        print(line)
    digits = ", ".join(f"{digit} {name}" for digit, name in enumerate(FORECASTS))
    explain(
        f"\nsteps: F full, · shallow, - skipped. forecast: {digits}. "
        "guidance: x where only the conditional half of the guided batch runs. Below the line: other ways to generate "
        "the held-out prompts.\n"
    )


def _advice(unseen: Mapping[str, Any]) -> Iterator[str]:
    """What is better than the plan on the held-out prompts."""
    measured = unseen["measured"]
    if "uniform" in unseen and unseen["uniform"]["psnr"] > measured["psnr"]:
        yield (
            f"On the held-out prompts, uniform, {unseen['uniform']['name']} is closer to the original. Tune on more "
            "prompts (--tune-on), or use those settings."
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
