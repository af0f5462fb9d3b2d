"""Options that several commands have, and lists in an option."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from DeepCache.config import DeepCacheConfig
from DeepCache.plan import Plan

__all__ = [
    "DEEPCACHE_PANEL",
    "MODEL_PANEL",
    "Between",
    "Branch",
    "CompileMode",
    "Config",
    "Device",
    "Dtype",
    "Embeddings",
    "ForcePlan",
    "Forecast",
    "Guidance",
    "GuidanceReuse",
    "Guidances",
    "Interval",
    "Json",
    "Loras",
    "Model",
    "Offload",
    "PlanFile",
    "Preset",
    "Runtime",
    "Scheduler",
    "SkipMode",
    "Threads",
    "Threshold",
    "Vae",
    "VaeSlicing",
    "VaeTiling",
    "check_output",
    "deepcache_config",
    "guidance_scales",
    "numbers",
    "sizes",
    "words",
]

MODEL_PANEL = "Model"
DEEPCACHE_PANEL = "DeepCache"
_DEFAULT_THRESHOLD = DeepCacheConfig().threshold

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A name (shapes comes with DeepCache; sd15, sd21, sdxl, … get random weights), a folder, a .safetensors "
        "file of Stable Diffusion 1 or 2 or SDXL, or owner/name on the hub.",
        rich_help_panel=MODEL_PANEL,
    ),
]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="NAME",
        help="For a model in one file: its configuration, by a name (sd15, sd15-inpainting, sd21, sd21-base, "
        "sd2-inpainting, sdxl, sdxl-inpainting, sdxl-refiner, …), a folder in the layout of diffusers, or owner/name "
        "on the hub. Files of Stable Diffusion 2 are taken for sd21, which predicts the velocity: give sd21-base for "
        "one for 512 pixels.",
        show_default="found by the layers in the file",
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
        help="float32, float16 or bfloat16; auto is float16 with CUDA, else float32. On a CPU, bfloat16 is several "
        "times faster with AMX and many times slower where it is emulated: `deepcache env` shows which.",
        rich_help_panel=MODEL_PANEL,
    ),
]
Vae = Annotated[
    str | None,
    typer.Option(
        "--vae",
        metavar="MODEL",
        help="Another autoencoder than the model's own: a folder of a VAE, or owner/name on the hub. A small one made "
        "for the same latents, such as madebyollin/taesd for Stable Diffusion 1 and 2 and madebyollin/taesdxl for XL, "
        "decodes many times faster.",
        show_default="the model's own",
        rich_help_panel=MODEL_PANEL,
    ),
]
Device = Annotated[
    str, typer.Option(help="cuda, cuda:1, mps, cpu, …; auto is the best there is.", rich_help_panel=MODEL_PANEL)
]
Runtime = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What the U-Net runs in: torch, or on the CPU openvino or onnx (each takes the extra of its name). Graphs "
        "are made the first time, which takes up to minutes, and kept in ~/.cache/deepcache or $DEEPCACHE_CACHE.",
        rich_help_panel=MODEL_PANEL,
    ),
]
Offload = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="Keep the weights in the memory of the CPU and move them to the GPU when they are needed: model (one "
        "model at a time, slightly slower), group (one layer at a time, copied ahead with CUDA: less GPU memory and "
        "more CPU memory, slower) or sequential (one layer at a time: least memory, many times slower). The images "
        "are the same.",
        show_default="all on the device",
        rich_help_panel=MODEL_PANEL,
    ),
]
VaeTiling = Annotated[
    bool,
    typer.Option(
        "--vae-tiling",
        help="Decode in overlapping tiles, so that a large image takes the VAE no more memory than a tile. It takes "
        "longer, and images larger than a tile (as a rule 512 pixels, with XL 1024) change slightly.",
        rich_help_panel=MODEL_PANEL,
    ),
]
VaeSlicing = Annotated[
    bool,
    typer.Option(
        "--vae-slicing",
        help="Decode the images of one pipeline call one after the other, which takes less memory and slightly "
        "longer. It has no effect with --batch 1.",
        rich_help_panel=MODEL_PANEL,
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(help="Guidance scale.", show_default="recommended for the model", rich_help_panel=MODEL_PANEL),
]
Guidances = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBERS",
        help="Guidance scales, such as 2,4,7.5.",
        show_default="recommended for the model",
        rich_help_panel=MODEL_PANEL,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(help="Threads of PyTorch on the CPU.", show_default="PyTorch's own", rich_help_panel=MODEL_PANEL),
]

Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="PATH[:SCALE]",
        help="A LoRA: a file, a folder, or owner/name on the hub; repeat it for several.",
        show_default=False,
        rich_help_panel=MODEL_PANEL,
    ),
]
Embeddings = Annotated[
    list[str] | None,
    typer.Option(
        "--embedding",
        metavar="PATH",
        help="A textual inversion, whose word is its file's name; repeat it for several.",
        show_default=False,
        rich_help_panel=MODEL_PANEL,
    ),
]

Json = Annotated[bool, typer.Option("--json", help="Print the results as a JSON object, for programs.")]

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
        metavar="NAME",
        help="How full steps are spread: uniform, non-uniform (denser around three tenths of the way) or adaptive "
        "(where the forecasts would become too wrong; --interval is then the most steps from one to the next).",
        rich_help_panel=DEEPCACHE_PANEL,
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        help="With --skip-mode adaptive: how large the expected error of a forecast may become, as a share of what is "
        "forecast. Larger is faster and less faithful.",
        show_default=f"{_DEFAULT_THRESHOLD:g}",
        rich_help_panel=DEEPCACHE_PANEL,
    ),
]
Between = Annotated[
    str,
    typer.Option(
        "--between",
        metavar="NAME",
        help="What the steps between full ones are: shallow, skipped (no layer of the U-Net runs, and its prediction "
        "is forecast) or alternating (shallow, skipped, shallow, …).",
        rich_help_panel=DEEPCACHE_PANEL,
    ),
]
Forecast = Annotated[
    str,
    typer.Option(
        "--forecast",
        "-f",
        metavar="NAME",
        help="How shallow steps continue the deep feature, and skipped ones the prediction. limited: a line of bounded "
        "slope, for high guidance scales too; linear, quadratic: for low ones; response: for skipped steps, "
        "best at guidance 5 or more with DPM++; none: re-use as in the paper.",
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
    str | None,
    typer.Option(
        "--plan",
        metavar="FILE",
        help="A plan of `deepcache tune`, or an image generated with one, instead of the settings above.",
        rich_help_panel=DEEPCACHE_PANEL,
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="faithful, balanced or fast: settings for the guidance scale and the scheduler, instead of those below.",
        show_default=False,
        rich_help_panel=DEEPCACHE_PANEL,
    ),
]
ForcePlan = Annotated[
    bool,
    typer.Option(
        "--force-plan",
        help="Use the plan on another model, scheduler, number of steps or guidance scale than it was tuned for.",
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
    plan: str | None,
    force_plan: bool,
    compile_mode: str,
    between: str,
    threshold: float | None,
) -> DeepCacheConfig:
    """The settings that the options of this name stand for.

    Raises:
        ValueError: a value is out of its range, the file holds no plan, a plan is to be forced that is not given, or
            a threshold is given without an adaptive schedule.
        OSError: the file of the plan cannot be read.
    """
    if force_plan and plan is None:
        raise ValueError("--force-plan says how to use a plan: give one with --plan FILE")
    if threshold is not None and skip_mode != "adaptive":
        raise ValueError(
            f"--threshold is for adaptive schedules, got {threshold:g} with --skip-mode {skip_mode}; add --skip-mode "
            "adaptive, or leave --threshold out"
        )
    # The names come from the command line: DeepCacheConfig checks them.
    names: dict[str, Any] = {
        "skip_mode": skip_mode,
        "forecast": forecast,
        "compile": compile_mode,
        "between": between,
    }
    return DeepCacheConfig(
        cache_interval=interval,
        cache_branch_id=branch,
        guidance_reuse=guidance_reuse,
        plan=None if plan is None else _plan(plan),
        force_plan=force_plan,
        threshold=_DEFAULT_THRESHOLD if threshold is None else threshold,
        **names,
    )


def _plan(path: str) -> Plan:
    """The plan in a file, or that of an image that was generated with one."""
    from DeepCache.generation import FORMATS, read_settings

    if Path(path).suffix.lower() not in FORMATS:
        return Plan.from_file(path)
    settings = read_settings(path)["settings"]
    cache = settings["deepcache"] if isinstance(settings["deepcache"], dict) else settings
    if cache.get("plan") is None:
        raise ValueError(f"{path!r} was generated without a plan")
    return Plan.from_dict(cache["plan"])


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


def guidance_scales(text: str) -> tuple[float, ...]:
    """The guidance scales in a list with commas between them.

    Raises:
        ValueError: a part is not a number.

    Example:
        >>> guidance_scales("2, 7.5")
        (2.0, 7.5)
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"guidance must be numbers with commas between them, such as 2,4,7.5, got {text!r}") from None


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
