"""Options that several commands have, and lists in an option."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from DeepCache.config import DeepCacheConfig
from DeepCache.plan import Plan

__all__ = [
    "DEEPCACHE_PANEL",
    "MODEL_PANEL",
    "Branch",
    "CompileMode",
    "Device",
    "Dtype",
    "ForcePlan",
    "Forecast",
    "Guidance",
    "GuidanceReuse",
    "Interval",
    "Model",
    "PlanFile",
    "Scheduler",
    "SkipMode",
    "Threads",
    "check_output",
    "deepcache_config",
    "numbers",
    "sizes",
    "words",
]

MODEL_PANEL = "Model"
DEEPCACHE_PANEL = "DeepCache"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A name (shapes comes with DeepCache; sd15, sd21, sdxl, … get random weights), a folder, or owner/name "
        "on the hub.",
        rich_help_panel=MODEL_PANEL,
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="ddim, dpm++, euler, euler-a, heun, unipc, pndm, … or a class of diffusers.",
        show_default="the model's own",
        rich_help_panel=MODEL_PANEL,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="float32, float16 or bfloat16; auto is float16 with CUDA, else float32.", rich_help_panel=MODEL_PANEL
    ),
]
Device = Annotated[
    str, typer.Option(help="cuda, cuda:1, mps, cpu, …; auto is the best there is.", rich_help_panel=MODEL_PANEL)
]
Guidance = Annotated[
    float | None,
    typer.Option(help="Guidance scale.", show_default="recommended for the model", rich_help_panel=MODEL_PANEL),
]
Threads = Annotated[
    int | None,
    typer.Option(help="Threads of PyTorch on the CPU.", show_default="PyTorch's own", rich_help_panel=MODEL_PANEL),
]

Interval = Annotated[
    int,
    typer.Option(
        "--interval",
        "-i",
        help="Steps from one full step to the next; 1 caches nothing.",
        rich_help_panel=DEEPCACHE_PANEL,
    ),
]
Branch = Annotated[
    int,
    typer.Option(
        "--branch",
        "-b",
        help="Skip branch at which shallow steps cut the U-Net, 0 the shallowest; `deepcache info MODEL` lists them.",
        rich_help_panel=DEEPCACHE_PANEL,
    ),
]
SkipMode = Annotated[
    str,
    typer.Option(
        "--skip-mode",
        help="How full steps are spread: uniform or non-uniform (denser around three tenths of the way).",
        rich_help_panel=DEEPCACHE_PANEL,
    ),
]
Forecast = Annotated[
    str,
    typer.Option(
        "--forecast",
        "-f",
        help="How shallow steps continue the deep feature: none re-uses the last one, linear and quadratic follow "
        "its course.",
        rich_help_panel=DEEPCACHE_PANEL,
    ),
]
GuidanceReuse = Annotated[
    bool,
    typer.Option(
        "--guidance-reuse",
        help="Run only the half of the guided batch with the prompt on shallow steps, and forecast the other.",
        rich_help_panel=DEEPCACHE_PANEL,
    ),
]
PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        metavar="FILE",
        help="A plan of `deepcache tune`, in the place of the five settings above.",
        rich_help_panel=DEEPCACHE_PANEL,
    ),
]
ForcePlan = Annotated[
    bool,
    typer.Option(
        "--force-plan",
        help="Use the plan on another model, scheduler or number of steps than it was tuned for.",
        rich_help_panel=DEEPCACHE_PANEL,
    ),
]
CompileMode = Annotated[
    str,
    typer.Option(
        "--compile",
        metavar="MODE",
        help="Compile the U-Net, one graph for full steps and one for shallow ones: default, reduce-overhead or "
        "max-autotune (both with CUDA graphs), max-autotune-no-cudagraphs; regional compiles the transformer "
        "blocks alone, in less time and for less gain. Pays off over many pictures.",
        rich_help_panel=DEEPCACHE_PANEL,
    ),
]


def deepcache_config(
    interval: int,
    branch: int,
    skip_mode: str,
    forecast: str,
    guidance_reuse: bool,
    plan: Path | None,
    force_plan: bool,
    compile_mode: str,
) -> DeepCacheConfig:
    """The settings that the options of this name stand for.

    Raises:
        ValueError: a value is out of its range, the file holds no plan, or a plan is to be forced that is not given.
        OSError: the file of the plan cannot be read.
    """
    if force_plan and plan is None:
        raise ValueError("--force-plan says how to use a plan: give one with --plan FILE")
    return DeepCacheConfig(
        cache_interval=interval,
        cache_branch_id=branch,
        skip_mode=skip_mode,
        forecast=forecast,
        guidance_reuse=guidance_reuse,
        plan=Plan.from_file(plan) if plan is not None else None,
        force_plan=force_plan,
        compile=compile_mode,
    )


def words(text: str) -> tuple[str, ...]:
    """The parts of a list with commas between them.

    Example:
        >>> words("eager, compiled")
        ('eager', 'compiled')
    """
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(name: str, text: str) -> tuple[int, ...]:
    """The whole numbers in a list with commas between them.

    Args:
        name: what they are, for the message.
        text: the list.

    Raises:
        ValueError: a part is no whole number.

    Example:
        >>> numbers("batches", "1,4,8")
        (1, 4, 8)
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{name} are numbers with commas between them, such as 0,1,3, got {text!r}") from None


def sizes(text: str) -> tuple[tuple[int, int], ...]:
    """The sizes in a list with commas between them, each as width and height.

    Raises:
        ValueError: a part is no size.

    Example:
        >>> sizes("512,768x512")
        ((512, 512), (768, 512))
    """
    from DeepCache.generation import parse_size

    return tuple(parse_size(part) for part in text.split(","))


def check_output(path: Path, what: str, example: str) -> None:
    """Refuses a file that cannot be written, before any work is done.

    Args:
        path: the file.
        what: what is to be written.
        example: a name that would do.

    Raises:
        ValueError: it is a folder, or in none.
    """
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {str(path.parent)!r} to write {what} to")
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder: give the name of a file for {what}, such as {example}")
