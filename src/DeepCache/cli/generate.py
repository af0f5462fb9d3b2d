"""`deepcache generate`: pictures from prompts, with DeepCache and for comparison without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from DeepCache.cli.interruption import INTERRUPTED
from DeepCache.cli.long_prompts import warn_of_long_prompts
from DeepCache.cli.options import (
    DEEPCACHE_PANEL,
    Between,
    Branch,
    CompileMode,
    Config,
    Device,
    Dtype,
    Embeddings,
    ForcePlan,
    Forecast,
    GuidanceReuse,
    Interval,
    Json,
    Loras,
    Model,
    Offload,
    PlanFile,
    Preset,
    Runtime,
    Scheduler,
    SkipMode,
    Threshold,
    Vae,
    VaeTiling,
    deepcache_config,
)
from DeepCache.cli.presets import check_preset, preset_config
from DeepCache.cli.recorded import print_differences, print_fidelity
from DeepCache.config import DeepCacheConfig
from DeepCache.errors import REPORTED_ERRORS

if TYPE_CHECKING:
    from DeepCache.generation import GenerationSettings

__all__ = ["generate_command"]

_PICTURE, _START, _OUTPUT = "Picture", "From an image", "Output"
_DEFAULT = DeepCacheConfig()


def generate_command(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="What to draw; each prompt is a picture."),
    ] = None,
    prompt_file: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="A file of prompts, or a URL such as s3://bucket/prompts.jsonl: .jsonl, .csv, .tsv or .parquet with a "
            "prompt, caption or text in each row and, if wanted, a seed, negative_prompt, and size (or width and "
            "height), which replace the options of that name; COCO's captions as .json; else text with one prompt a "
            "line, where blank lines and lines that start with # are skipped.",
            rich_help_panel=_PICTURE,
        ),
    ] = None,
    negative: Annotated[
        str,
        typer.Option(
            "--negative-prompt",
            "--negative",
            metavar="TEXT",
            help="What the pictures should not show; it counts only with a guidance scale above 1.",
            show_default=False,
            rich_help_panel=_PICTURE,
        ),
    ] = "",
    images: Annotated[int, typer.Option(help="Pictures of each prompt.", rich_help_panel=_PICTURE)] = 1,
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of the first picture; each further one has the next number, and can be "
            "drawn again alone with it.",
            rich_help_panel=_PICTURE,
        ),
    ] = 0,
    steps: Annotated[int, typer.Option(help="Denoising steps.", rich_help_panel=_PICTURE)] = 50,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Guidance scale; 1 or less turns guidance off.",
            show_default="recommended for the model",
            rich_help_panel=_PICTURE,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            help="In pixels; one number for a square.",
            show_default="the model's own",
            rich_help_panel=_PICTURE,
        ),
    ] = None,
    recorded: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="IMAGE",
            help="Regenerate an image: take the prompt and all settings from its metadata (DeepCache's own, or the "
            "parameters of AUTOMATIC1111's web UI). Other options override them.",
            show_default=False,
            rich_help_panel=_PICTURE,
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An image to start from.", show_default=False, rich_help_panel=_START),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="How much of it is made again, above 0 and at most 1.",
            show_default="the pipeline's own",
            rich_help_panel=_START,
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="White where it is made again.", show_default=False, rich_help_panel=_START),
    ] = None,
    controlnet: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A ControlNet of this model: a folder, or owner/name on the hub.",
            show_default=False,
            rich_help_panel=_START,
        ),
    ] = None,
    control_image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What it looks at.", show_default=False, rich_help_panel=_START),
    ] = None,
    model: Model = "shapes",
    config: Config = None,
    vae: Vae = None,
    scheduler: Scheduler = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    runtime: Runtime = "torch",
    offload: Offload = None,
    vae_tiling: VaeTiling = False,
    loras: Loras = None,
    embeddings: Embeddings = None,
    preset: Preset = None,
    interval: Interval = _DEFAULT.cache_interval,
    branch: Branch = _DEFAULT.cache_branch_id,
    skip_mode: SkipMode = _DEFAULT.skip_mode,
    threshold: Threshold = None,
    between: Between = _DEFAULT.between,
    forecast: Forecast = _DEFAULT.forecast,
    guidance_reuse: GuidanceReuse = False,
    plan: PlanFile = None,
    force_plan: ForcePlan = False,
    compile_mode: CompileMode = _DEFAULT.compile,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Draw each picture without DeepCache too, and write the two side by side. "
            "Before the clock starts, a run of two steps (with --compile one of each) warms up and is discarded; "
            "then each time is that of the whole pipeline call.",
            rich_help_panel=DEEPCACHE_PANEL,
        ),
    ] = False,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Where to write; images are numbered on from those there, never overwritten. A name with an ending "
            "(.png, .webp, .jpg) is that of the image.",
            rich_help_panel=_OUTPUT,
        ),
    ] = Path("deepcache-output"),
    as_json: Json = False,
) -> None:
    """Draw pictures from prompts with DeepCache.

    Each is a PNG that holds its prompt, seed and settings. Ctrl-C keeps what is finished.

    Example: deepcache generate "a red circle left of a blue square" --compare
    """
    from DeepCache.generation import (
        GeneratedImage,
        GenerationSettings,
        ImageInputs,
        OutputFolder,
        PromptRow,
        generate,
        parse_size,
        read_prompt_rows,
    )
    from DeepCache.runtime import check_runtime, device_for

    cache = deepcache_config(
        interval, branch, skip_mode, forecast, guidance_reuse, plan, force_plan, compile_mode, between, threshold
    )
    from DeepCache.models.adapters import Lora, check_adapters
    from DeepCache.models.loading import recommended_guidance
    from DeepCache.models.memory import check_offload, divide_vae

    wanted_loras = tuple(map(Lora.parse, loras or ()))
    check_adapters(wanted_loras, embeddings or ())
    inputs = ImageInputs(image, strength, mask, control_image, controlnet)
    inputs.check()
    if not prompts and prompt_file is None:
        raise ValueError("there is nothing to draw: give a PROMPT or --prompts FILE")
    rows = [*map(PromptRow, prompts or ()), *(read_prompt_rows(prompt_file) if prompt_file is not None else ())]
    own_size = None if size is None else parse_size(size)
    settings = [
        GenerationSettings(
            prompts=(row.prompt,),
            model=model,
            negative_prompt=negative if row.negative_prompt is None else row.negative_prompt,
            steps=steps,
            guidance=guidance,
            size=own_size if row.size is None else row.size,
            # Whatever other rows say, a row without a seed keeps its own.
            seed=seed + number * images if row.seed is None else row.seed,
            images_per_prompt=images,
            cache=cache,
            loras=wanted_loras,
            embeddings=tuple(embeddings or ()),
            inputs=inputs,
            vae=vae,
            config=config,
        )
        for number, row in enumerate(rows)
    ]
    check_preset(preset)
    check_runtime(runtime, cache)
    check_offload(offload, runtime)
    folder = OutputFolder(output)

    from DeepCache.cli.progress import StepDisplay
    from DeepCache.cli.results import print_results

    finished: list[GeneratedImage] = []
    stderr = Console(stderr=True, markup=False)
    try:
        pipe = _pipeline(settings[0], dtype, device_for(runtime, device), scheduler, offload, stderr)
        divide_vae(pipe, tiling=vae_tiling)
        print_differences(recorded, pipe, stderr)
        if preset is not None:
            scale = recommended_guidance(model, pipe) if guidance is None else guidance
            preset_cache = preset_config(preset, scale, type(pipe.scheduler).__name__, cache, stderr)
            settings = [replace(each, cache=preset_cache) for each in settings]
        warn_of_long_prompts(pipe, [text for each in settings for text in (*each.prompts, each.negative_prompt)])
        if compile_mode != _DEFAULT.compile:
            note = "The first steps of each kind compile the U-Net, which takes a minute or more."
            stderr.print(note, soft_wrap=True, highlight=False)
        with StepDisplay(stderr) as display:
            if runtime != "torch":
                from DeepCache.export import use_runtime

                use_runtime(pipe, runtime, settings[0].cache, on_stage=display.note)
            for generated in generate(pipe, settings, folder, compare=compare, on_step=display):
                finished.append(generated)
                display.finish_image()
    except KeyboardInterrupt:
        print_results(finished, folder.written, as_json=as_json)
        count = sum(not path.stem.endswith(("-original", "-compare")) for path in folder.written)
        stderr.print(f"Stopped: {count} of {sum(each.count for each in settings)} pictures are finished.")
        raise typer.Exit(INTERRUPTED) from None
    except REPORTED_ERRORS:
        # What was finished before stays.
        if finished:
            print_results(finished, folder.written, as_json=as_json)
        raise
    print_results(finished, folder.written, as_json=as_json)
    print_fidelity(recorded, finished, stderr)


def _pipeline(
    settings: GenerationSettings,
    dtype: str,
    device: str,
    scheduler: str | None,
    offload: str | None,
    stderr: Console,
) -> Any:
    """The pipeline that the settings are for."""
    from DeepCache.cli.loading import load
    from DeepCache.models import load_embeddings, load_loras, offload_pipeline, set_scheduler

    pipe: Any = load(
        settings.model,
        dtype=dtype,
        device=device,
        vae=settings.vae,
        config=settings.config,
        offload=offload,
        console=stderr,
    )
    load_loras(pipe, settings.loras)
    load_embeddings(pipe, settings.embeddings)
    if settings.inputs:
        pipe = settings.inputs.pipeline(pipe)
    if scheduler is not None:
        set_scheduler(pipe, scheduler)
    # The pipeline that is called, with all of its components.
    if offload is not None:
        offload_pipeline(pipe, offload, device)
    return pipe
