"""Options that several commands share.

A parameter of a command whose type is one of the dataclasses here stands for an option per field, see `expanded`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from DeepCache.config import DeepCacheConfig
from DeepCache.plan import Plan

if TYPE_CHECKING:
    from DeepCache.generation import GenerationSettings

caching_option = partial(typer.Option, rich_help_panel="DeepCache")
model_option = partial(typer.Option, rich_help_panel="Model")
image_option = partial(typer.Option, rich_help_panel="Images")
output_option = partial(typer.Option, rich_help_panel="Output")
grid_option = partial(typer.Option, rich_help_panel="Grid (comma-separated lists)")
prompt_option = partial(typer.Option, rich_help_panel="Prompts")

_DEFAULTS = DeepCacheConfig()
_MODELS = (
    "shapes (bundled), sd15, sd21, sdxl, ... (random weights), a folder, a .safetensors file, or owner/name on the \
Hugging Face Hub."
)

Model = Annotated[str, model_option("--model", "-m", help=_MODELS)]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=_MODELS)]
Config = Annotated[
    str | None,
    model_option(
        metavar="NAME",
        help="Configuration of a model in a single file: a name (sd15, sd15-inpainting, sd21, sd21-base, "
        "sd2-inpainting, sdxl, sdxl-inpainting, sdxl-refiner, ...), a folder in diffusers layout, or owner/name on the "
        "Hub. Stable Diffusion 2 files are read as sd21 (v-prediction); use sd21-base for 512-pixel models.",
        show_default="detected from the layers in the file",
    ),
]
Scheduler = Annotated[
    str | None,
    model_option(
        metavar="NAME",
        help="ddim, dpm++, euler, euler-a, heun, unipc, pndm, ..., or a diffusers class.",
        show_default="the model's own",
    ),
]
Dtype = Annotated[
    str,
    model_option(
        help="float32, float16 or bfloat16; auto: float16 on CUDA, float32 elsewhere. bfloat16 on a CPU is several "
        "times faster with AMX and many times slower where it is emulated: see `deepcache env`.",
    ),
]
Device = Annotated[str, model_option(help="cuda, cuda:1, mps, cpu, ...; auto selects the fastest one available.")]
Runtime = Annotated[
    str,
    model_option(
        metavar="NAME",
        help="Runtime of the U-Net: torch, or on a CPU openvino or onnx (each requires the extra of that name). The "
        "first run exports the U-Net to ~/.cache/deepcache or $DEEPCACHE_CACHE, which can take minutes.",
    ),
]
Offload = Annotated[
    str | None,
    model_option(
        metavar="KIND",
        help="Keep weights in CPU memory and move them to the GPU when needed: model (one model at a time, slightly "
        "slower), group (one layer at a time, prefetched on CUDA: less GPU memory and more CPU memory, slower) or "
        "sequential (one layer at a time: least memory, many times slower). Images do not change.",
        show_default="no offloading",
    ),
]
Threads = Annotated[int | None, model_option(help="PyTorch CPU threads.", show_default="PyTorch's default")]
Steps = Annotated[int, model_option(help="Denoising steps.")]
Size = Annotated[
    str | None,
    model_option(
        metavar="WIDTHxHEIGHT", help="Size in pixels; a single number for a square.", show_default="the model's own"
    ),
]
Guidances = Annotated[
    str | None,
    model_option(metavar="NUMBERS", help="Guidance scales, such as 2,4,7.5.", show_default="recommended for the model"),
]
Variants = Annotated[
    list[str] | None,
    grid_option(
        "--variant",
        "-v",
        metavar="SETTINGS",
        help="Settings to measure (with `ablate`, besides the grid), such as 'I=5 B=1', 'I=3 linear guidance-reuse', "
        "'I=3 response skipped', 'I=8 limited adaptive threshold=0.2' or 'plan=FILE'. Can be repeated. The defaults "
        "are those of the paper: branch 0, uniform, shallow steps, reuse. A plan requires the scheduler, steps and "
        "guidance scales it was tuned for.",
    ),
]
PromptFile = Annotated[
    str | None,
    prompt_option(
        "--prompts",
        metavar="FILE",
        help="Prompt file: .jsonl, .csv or .tsv with a column prompt, caption or text, COCO captions (.json), or text "
        "with one prompt per line.",
        show_default="bundled prompts",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the results as a JSON object.")]


@dataclass(frozen=True)
class LoadingOptions:
    """Which model to load, and how."""

    model: Model = "shapes"
    config: Config = None
    scheduler: Scheduler = None
    dtype: Dtype = "auto"
    device: Device = "auto"


@dataclass(frozen=True)
class GenerationOptions(LoadingOptions):
    """How to generate images."""

    vae: str | None = model_option(
        None,
        metavar="MODEL",
        help="VAE to use instead of the model's own: a folder, or owner/name on the Hub. Tiny ones such as "
        "madebyollin/taesd (Stable Diffusion 1 and 2) and madebyollin/taesdxl (XL) decode many times faster.",
        show_default="the model's own",
    )
    runtime: Runtime = "torch"
    offload: Offload = None
    vae_tiling: bool = model_option(
        False,
        "--vae-tiling",
        help="Decode in overlapping tiles, so that the VAE needs no more memory for a large image than for a tile. "
        "Slower, and images larger than a tile (usually 512 pixels, 1024 for XL) change slightly.",
    )
    loras: list[str] | None = model_option(
        None,
        "--lora",
        metavar="PATH[:SCALE]",
        help="LoRA: a file, a folder, or owner/name on the Hub. Can be repeated.",
        show_default=False,
    )
    embeddings: list[str] | None = model_option(
        None,
        "--embedding",
        metavar="PATH",
        help="Textual inversion, used in prompts by its file name. Can be repeated.",
        show_default=False,
    )
    negative_prompt: str = image_option(
        "",
        "--negative-prompt",
        "--negative",
        metavar="TEXT",
        help="What images should not show. Requires a guidance scale above 1.",
        show_default=False,
    )
    steps: int = image_option(50, help="Denoising steps.")
    guidance: float | None = image_option(
        None, help="Guidance scale; 1 or less disables guidance.", show_default="recommended for the model"
    )
    size: str | None = image_option(
        None,
        metavar="WIDTHxHEIGHT",
        help="Size in pixels; a single number for a square.",
        show_default="the model's own",
    )
    preset: str | None = caching_option(
        None,
        metavar="NAME",
        help="faithful, balanced or fast: settings for the guidance scale and the scheduler. Cannot be combined with "
        "the other settings of DeepCache, except --compile.",
        show_default=False,
    )
    compile_mode: str = caching_option(
        _DEFAULTS.compile,
        "--compile",
        metavar="MODE",
        help="Compile the U-Net into a graph for full steps and one for shallow steps: default, reduce-overhead or "
        "max-autotune (both with CUDA graphs), max-autotune-no-cudagraphs; regional compiles only the transformer "
        "blocks, which takes less time and gains less. Pays off over many images.",
    )

    def settings(self, cache: DeepCacheConfig, **more: Any) -> GenerationSettings:
        """The settings of a run with these options."""
        from DeepCache.generation import GenerationSettings, parse_size
        from DeepCache.models import Lora

        if self.preset is not None:
            # An unknown name is refused before a model is loaded.
            DeepCacheConfig.preset(self.preset)
        others = ("device", "offload", "preset", "compile_mode")
        values = {name: value for name, value in vars(self).items() if name not in others} | {
            "loras": tuple(map(Lora.parse, self.loras or ())),
            "embeddings": tuple(self.embeddings or ()),
            "size": None if self.size is None else parse_size(self.size),
        }
        return GenerationSettings(cache=cache, **values, **more)

    def with_preset(self, settings: GenerationSettings, pipe: Any) -> GenerationSettings:
        """The settings with those of the preset for the guidance scale and the scheduler, which are printed."""
        if self.preset is None:
            return settings
        scheduler = type(pipe.scheduler).__name__
        cache = preset_config(self.preset, settings.guidance_for(pipe), scheduler, settings.cache)
        return replace(settings, cache=cache)


@dataclass(frozen=True)
class CachingOptions:
    """Settings of DeepCache."""

    cache_interval: int = caching_option(
        _DEFAULTS.cache_interval, "--interval", "-i", help="Distance between full steps; 1 disables caching."
    )
    cache_branch_id: int = caching_option(
        _DEFAULTS.cache_branch_id,
        "--branch",
        "-b",
        help="Skip branch at which shallow steps cut the U-Net; 0 is the shallowest. `deepcache info MODEL` lists "
        "them.",
    )
    skip_mode: str = caching_option(
        _DEFAULTS.skip_mode,
        metavar="NAME",
        help="Distribution of full steps: uniform, non-uniform (denser around 30 % of the run) or adaptive (whenever "
        "the expected forecast error exceeds --threshold; --interval is then the largest distance).",
    )
    threshold: float | None = caching_option(
        None,
        help="With --skip-mode adaptive: the largest expected forecast error, relative to the forecast value. Larger "
        "is faster and less faithful.",
        show_default=f"{_DEFAULTS.threshold:g}",
    )
    between: str = caching_option(
        _DEFAULTS.between,
        metavar="NAME",
        help="Steps between full steps: shallow, skipped (the U-Net does not run; its prediction is forecast) or "
        "alternating (shallow, skipped, shallow, ...).",
    )
    forecast: str = caching_option(
        _DEFAULTS.forecast,
        "--forecast",
        "-f",
        metavar="NAME",
        help="Extrapolation of the deep feature (shallow steps) and of the prediction (skipped steps). limited: "
        "linear with a bounded slope, for all guidance scales; linear, quadratic: for low guidance scales; response: "
        "for skipped steps only, best with DPM++ at guidance 5 or more; none: reuse, as in the paper.",
    )
    guidance_reuse: bool = caching_option(
        False,
        "--guidance-reuse",
        help="On shallow steps, run only the conditional half of the guided batch and forecast the other half.",
    )
    plan: str | None = caching_option(
        None,
        metavar="FILE",
        help="Plan written by `deepcache tune`, or an image generated with one. Replaces the settings above.",
    )
    force_plan: bool = caching_option(
        False,
        "--force-plan",
        help="Use the plan with a model, scheduler, number of steps or guidance scale that it was not tuned for.",
    )

    def config_for(self, compile_mode: str = "none") -> DeepCacheConfig:
        """The settings that these options stand for.

        Raises:
            ValueError: a value is not allowed, or an option requires another one.
            OSError: the file of the plan cannot be read.
        """
        if self.force_plan and self.plan is None:
            raise ValueError("--force-plan requires --plan FILE")
        if self.threshold is not None and self.skip_mode != "adaptive":
            raise ValueError(
                f"--threshold requires --skip-mode adaptive, got {self.threshold:g} with --skip-mode {self.skip_mode}"
            )
        values = vars(self) | {"compile": compile_mode}
        if self.threshold is None:
            del values["threshold"]
        if self.plan is not None:
            values["plan"] = _read_plan(self.plan)
        return DeepCacheConfig(**values)


def _read_plan(path: str) -> Plan:
    """The plan in a file, or the one that an image was generated with."""
    from DeepCache.generation import FORMATS, read_settings

    if Path(path).suffix.lower() not in FORMATS:
        return Plan.from_file(path)
    settings = read_settings(path)["settings"]
    cache = settings["deepcache"] if isinstance(settings["deepcache"], dict) else settings
    if cache.get("plan") is None:
        raise ValueError(f"{path!r} was generated without a plan")
    return Plan.from_dict(cache["plan"])


def preset_config(preset: str, guidance: float | None, scheduler: str, cache: DeepCacheConfig) -> DeepCacheConfig:
    """The settings of a preset at a guidance scale with a scheduler class, which it prints, with the compile mode of
    `cache`."""
    found = DeepCacheConfig.preset(preset, guidance, scheduler)
    options = f"--interval {found.cache_interval} --between {found.between} --forecast {found.forecast}"
    print(f"Preset {preset}: {options}", file=sys.stderr)
    return replace(found, compile=cache.compile)


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of its parameters that are dataclasses."""
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {each.name: each.annotation for each in parameters if is_dataclass(each.annotation)}

    def options_of(parameter: inspect.Parameter) -> Sequence[inspect.Parameter]:
        if parameter.name not in groups:
            return [parameter.replace(kind=parameter.KEYWORD_ONLY)]
        types = get_type_hints(parameter.annotation, include_extras=True)
        return [
            inspect.Parameter(each.name, parameter.KEYWORD_ONLY, default=each.default, annotation=types[each.name])
            for each in fields(parameter.annotation)
        ]

    @wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{each.name: values.pop(each.name) for each in fields(group)})
        command(**values)

    signature = inspect.Signature([option for parameter in parameters for option in options_of(parameter)])
    vars(run)["__signature__"] = signature
    return run


def output_path(default: str, metavar: str, text: str) -> Any:
    return output_option(Path(default), "--output", "-o", metavar=metavar, help=text)


def words(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated list.

    Example:
        >>> words("eager, compiled")
        ('eager', 'compiled')
    """
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(name: str, text: str, kind: type[int] | type[float] = int) -> tuple[Any, ...]:
    """The numbers in a comma-separated list; `name` is theirs in the message.

    Example:
        >>> numbers("batches", "1,4,8"), numbers("guidance", "2, 7.5", float)
        ((1, 4, 8), (2.0, 7.5))
    """
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        kinds = "whole numbers separated by commas, such as 0,1,3"
        if kind is float:
            kinds = "numbers separated by commas, such as 2,4,7.5"
        raise ValueError(f"{name} must be {kinds}, got {text!r}") from None


def check_output(path: Path) -> None:
    """Refuses an output file that cannot be written, before any work is done."""
    if not path.parent.is_dir():
        raise ValueError(f"cannot write --output {str(path)!r}: the folder {str(path.parent)!r} does not exist")
    if path.is_dir():
        raise ValueError(f"--output must be a file, and {str(path)!r} is a folder")
