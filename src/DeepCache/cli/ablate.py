"""`deepcache ablate`: fidelity and cost of many settings."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

from DeepCache.cli.console import explain, note, print_json, print_table, table
from DeepCache.cli.options import (
    Device,
    Dtype,
    Guidances,
    Json,
    Model,
    PromptFile,
    Size,
    Threads,
    Variants,
    check_output,
    grid_option,
    numbers,
    output_option,
    output_path,
    prompt_option,
    words,
)
from DeepCache.cli.progress import work_display
from DeepCache.config import DeepCacheConfig
from DeepCache.schedule import BETWEEN, FORECASTS, SKIP_MODES

# Reuse, which the others are compared with, linear, and the default if it is another one.
_FORECASTS = ",".join(dict.fromkeys(("none", "linear", DeepCacheConfig().forecast)))
_GUIDANCE_REUSE = {"off": (False,), "on": (True,), "both": (False, True)}


def ablate_command(
    model: Model = "shapes",
    guidance: Guidances = None,
    size: Size = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    intervals: str = grid_option("2,3,5,10", metavar="NUMBERS", help="Intervals."),
    branches: str = grid_option("0,1,2", metavar="NUMBERS", help="Skip branches."),
    schedules: str = grid_option("uniform", metavar="NAMES", help=f"{', '.join(SKIP_MODES)}."),
    forecasts: str = grid_option(_FORECASTS, metavar="NAMES", help=f"{', '.join(FORECASTS)}."),
    between: str = grid_option(
        DeepCacheConfig().between,
        metavar="NAMES",
        help=f"Steps between full steps: {', '.join(BETWEEN)}. Invalid combinations, such as forecast response with "
        "shallow steps, are omitted.",
    ),
    guidance_reuse: str = grid_option("off", metavar="WHICH", help="off, on or both."),
    variants: Variants = None,
    schedulers: str | None = grid_option(
        None, metavar="NAMES", help="ddim, dpm++, euler, ...", show_default="the model's own"
    ),
    steps: str = grid_option("50", metavar="NUMBERS", help="Numbers of denoising steps."),
    prompt_file: PromptFile = None,
    count: int | None = prompt_option(None, help="Number of prompts to use, sampled with --seed.", show_default="all"),
    seeds: int = prompt_option(1, help="Images per prompt."),
    seed: int = prompt_option(
        0,
        help="Seed of the first image; the seeds of the following images count up from it. With --count, also the "
        "seed of the sample of prompts.",
    ),
    batch: int = prompt_option(8, help="Images per pipeline call."),
    threads: Threads = None,
    clip: str = output_option(
        "openai/clip-vit-large-patch14",
        metavar="MODEL",
        help="Model for the CLIP score: a folder or a Hub ID. CLIP score and LPIPS are omitted if their weights are "
        "not on this machine.",
    ),
    judge: bool = output_option(
        True,
        help="Count objects with the right color, shape and position, if the model has a judge (shapes does, for its "
        "own captions).",
    ),
    samples: int = output_option(4, help="Sample images to save per setting."),
    output: Path = output_path(
        "ablation.json",
        "FILE",
        "Result file, written after every setting; settings in an existing file are not repeated. Samples are "
        "saved in a folder next to it.",
    ),
    as_json: Json = False,
) -> None:
    """Measure cost and fidelity over intervals, branches, forecasts, guidance scales, schedulers and steps.

    Every setting generates the same prompts from the same latents as the pipeline without caching; so do fewer steps at
    similar cost. The same command resumes after Ctrl-C. `deepcache report` creates a page from the result.

    Example: deepcache ablate --intervals 2,3,5 --guidance 2,4,7.5 --schedulers ddim,dpm++ --output ablation.json
    """
    from DeepCache.bench.variants import parse_variant
    from DeepCache.generation import parse_size
    from DeepCache.prompts import bundled_prompts, read_prompts, sample_prompts

    check_output(output)
    for name, value in (("--seeds", seeds), ("--count", 1 if count is None else count)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if guidance_reuse not in _GUIDANCE_REUSE:
        raise ValueError(f"--guidance-reuse must be one of {', '.join(_GUIDANCE_REUSE)}, got {guidance_reuse!r}")
    prompts = read_prompts(prompt_file) if prompt_file is not None else bundled_prompts(model)
    if count is not None:
        prompts = sample_prompts(prompts, count, seed)
    more = [parse_variant(text) for text in variants or ()]

    from DeepCache.bench.ablation import AblationSettings, grid, run_ablation
    from DeepCache.cli.loading import set_threads

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
        # Far enough apart that no two images start from the same latents.
        seeds=tuple(seed + place * len(prompts) for place in range(seeds)),
        guidances=() if guidance is None else numbers("guidance", guidance, float),
        size=None if size is None else parse_size(size),
        batch=batch,
        dtype=dtype,
        samples=samples,
        clip=clip,
        judge=judge,
    )
    set_threads(threads)
    with work_display(output) as display:
        result = run_ablation(settings, output, device, display)
    for metric, reason in result["settings"]["left_out"].items():
        note(f"{metric.upper()} is omitted: {reason}.")
    if as_json:
        print_json(result)
        return
    for group in result["groups"]:
        _print_group(group)
    explain(
        "\nMACs: multiply-accumulates of the U-Net, relative to those without DeepCache.\n"
        "5 %: 5th percentile of PSNR: one image in twenty is less similar to the original.\n"
        "over reuse: PSNR minus that of reuse at the same interval and branch, per image, with its 95 % confidence "
        "interval.\n"
        "beaten by: a setting that costs no more and is closer to the original. Settings without one are on the Pareto "
        "front.\n"
    )
    print(output)


def _print_group(group: dict[str, Any]) -> None:
    from DeepCache.bench.ablation_cells import guidance_in_words

    reference = group["reference"] or {}
    judged = reference.get("right") is not None
    right = ["right objects"] if judged else []
    columns = ("settings", "MACs", "PSNR", "5 %", "SSIM", *right, "over reuse", "beaten by")
    shown = table(*columns, text=["settings", "beaten by"])
    if judged:
        shown.add_row("no caching", "100.0%", "", "", "", f"{reference['right']['mean']:.1%}", "", "")
    for cell in sorted(group["cells"], key=lambda cell: -float(cell["mac_share"])):
        beaten = cell["dominated_by"]
        shown.add_row(
            cell["label"],
            f"{cell['mac_share']:.1%}",
            f"{cell['psnr']['mean']:.1f} dB",
            f"{cell['psnr']['p5']:.1f}",
            f"{cell['ssim']['mean']:.4f}",
            *([f"{cell['right']['mean']:.1%}"] if judged else []),
            _gain(cell["over_reuse"]),
            "" if beaten is None else f"{beaten['label']}, +{beaten['psnr_gain']:.1f} dB",
            style=None if cell["front"] else "dim",
        )
    print(f"{group['scheduler_class']}, {group['steps']} steps{guidance_in_words(group['guidance'])}")
    print_table(shown)


def _gain(over_reuse: dict[str, Any] | None) -> str:
    if over_reuse is None:
        return ""
    low, high = over_reuse["psnr"]["confidence"]
    return f"{over_reuse['psnr']['mean']:+.1f} ±{(high - low) / 2:.1f}"
