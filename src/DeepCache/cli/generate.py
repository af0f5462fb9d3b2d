"""`deepcache generate`: images from prompts, with DeepCache and for comparison without."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from DeepCache.cli.console import note
from DeepCache.cli.interruption import INTERRUPTED
from DeepCache.cli.options import CachingOptions, GenerationOptions, Json, caching_option, image_option, output_path

if TYPE_CHECKING:
    from DeepCache.generation import GeneratedImage, GenerationSettings, PromptRow

_start_option = partial(typer.Option, rich_help_panel="Start image", show_default=False)


def generate_command(
    prompts: list[str] | None = typer.Argument(
        None, metavar="PROMPT", help="Prompts; one image is generated for each."
    ),
    *,
    prompt_file: str | None = image_option(
        None,
        "--prompts",
        metavar="FILE",
        help="Prompt file, or a URL such as s3://bucket/prompts.jsonl: .jsonl, .csv, .tsv or .parquet with a column "
        "prompt, caption or text and optionally seed, negative_prompt, and size (or width and height), which "
        "override the options of that name; COCO captions (.json); any other file is text with one prompt per "
        "line, where blank lines and lines that start with # are skipped.",
    ),
    images: int = image_option(1, help="Images per prompt."),
    seed: int = image_option(0, help="Seed of the first image; the seeds of the following images count up from it."),
    recorded: Path | None = image_option(
        None,
        "--from",
        metavar="IMAGE",
        help="Regenerate an image from the prompt and settings in its metadata (from DeepCache, or the parameters of "
        "AUTOMATIC1111's web UI). Other options override them.",
        show_default=False,
    ),
    options: GenerationOptions,
    caching: CachingOptions,
    compare: bool = caching_option(
        False,
        "--compare",
        help="Also generate each image without DeepCache, and save the two side by side. Times are those of the "
        "whole pipeline call, after a warm-up of two steps (one run of each kind with --compile).",
    ),
    image: Path | None = _start_option(None, metavar="FILE", help="Start image."),
    strength: float | None = _start_option(
        None, help="How much the start image is changed, above 0 and at most 1.", show_default="the pipeline's own"
    ),
    mask: Path | None = _start_option(None, metavar="FILE", help="Mask for inpainting: white areas are regenerated."),
    controlnet: str | None = _start_option(
        None, metavar="MODEL", help="ControlNet for this model: a folder, or owner/name on the Hub."
    ),
    control_image: Path | None = _start_option(None, metavar="FILE", help="Input of the ControlNet."),
    output: Path = output_path(
        "deepcache-output",
        "FOLDER",
        "Output folder; existing files are never overwritten. A name that ends with .png, .webp or .jpg is the "
        "name of the image.",
    ),
    as_json: Json = False,
) -> None:
    """Generate images from prompts with DeepCache.

    Each PNG contains its prompt, seed and settings. Ctrl-C keeps the finished images.

    Example: deepcache generate "a red circle left of a blue square" --compare
    """
    from DeepCache.generation import ImageInputs, OutputFolder, PromptRow, generate, read_prompt_rows
    from DeepCache.models.adapters import check_adapters
    from DeepCache.models.memory import check_offload

    rows = [*map(PromptRow, prompts or ()), *(read_prompt_rows(prompt_file) if prompt_file is not None else ())]
    if not rows:
        raise ValueError("there is no prompt. Give a PROMPT or --prompts FILE")
    inputs = ImageInputs(image, strength, mask, control_image, controlnet)
    cache = caching.config_for(options.compile_mode)
    shared = options.settings(cache, prompts=(rows[0].prompt,), images_per_prompt=images, inputs=inputs)
    # All that can be checked before the model is loaded.
    check_adapters(shared.loras, shared.embeddings)
    check_offload(options.offload, shared.runtime)
    inputs.check()
    settings = [_row_settings(shared, row, seed + number * images) for number, row in enumerate(rows)]
    folder = OutputFolder(output)

    from DeepCache.cli.loading import loading
    from DeepCache.cli.progress import StepDisplay
    from DeepCache.cli.results import print_differences, print_fidelity, print_results
    from DeepCache.generation.prepare import complete_pipeline, load_base_pipeline

    finished: list[GeneratedImage] = []
    try:
        with loading(shared.model):
            pipe = load_base_pipeline(shared, device=options.device, offload=options.offload)
        shared = options.with_preset(shared, pipe)
        settings = [replace(each, cache=shared.cache) for each in settings]
        _warn_of_long_prompts(pipe, [text for each in settings for text in (*each.prompts, each.negative_prompt)])
        if cache.compile != "none":
            note("The first steps of each kind compile the U-Net, which takes a minute or more.")
        with StepDisplay() as display:
            complete_pipeline(
                pipe,
                shared,
                device=options.device,
                offload=options.offload,
                on_stage=lambda stage: display.note(f"{stage} …"),
            )
            if recorded is not None:
                print_differences(recorded, pipe)
            for generated in generate(pipe, settings, folder, compare=compare, on_step=display):
                finished.append(generated)
                display.finish_image()
    except KeyboardInterrupt:
        count = sum(not path.stem.endswith(("-original", "-compare")) for path in folder.written)
        note(f"Stopped: {count} of {sum(each.count for each in settings)} images are finished.")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        if folder.written:
            print_results(finished, folder.written, as_json=as_json)
    if recorded is not None:
        print_fidelity(recorded, finished)


def _row_settings(shared: GenerationSettings, row: PromptRow, seed: int) -> GenerationSettings:
    return replace(
        shared,
        prompts=(row.prompt,),
        negative_prompt=shared.negative_prompt if row.negative_prompt is None else row.negative_prompt,
        size=shared.size if row.size is None else row.size,
        seed=seed if row.seed is None else row.seed,
    )


def _warn_of_long_prompts(pipe: Any, texts: Iterable[str]) -> None:
    """Warns of prompts that are truncated, instead of diffusers and transformers, which quote what is cut off."""
    from DeepCache.text import shown

    tokenizer = getattr(pipe, "tokenizer", None)
    # A tokenizer without a limit has a huge one.
    most = getattr(tokenizer, "model_max_length", 1e30)
    if tokenizer is None or most >= 100_000:
        return
    for text in dict.fromkeys(texts):
        length = len(tokenizer(text).input_ids)
        if length > most:
            warnings.warn(
                f"the prompt {shown(text)} has {length} tokens, and the model reads the first {most}. Shorten it",
                stacklevel=1,
            )
