"""`deepcache batch`: an image for every row of a prompt file, on this machine or with Ray."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer

from DeepCache.cli.console import print_json
from DeepCache.cli.interruption import INTERRUPTED
from DeepCache.cli.options import (
    CachingOptions,
    GenerationOptions,
    Json,
    image_option,
    model_option,
    output_option,
)
from DeepCache.cli.progress import BatchDisplay

if TYPE_CHECKING:
    from DeepCache.batch import BatchSummary, Engine

_worker_option = partial(typer.Option, rich_help_panel="Workers")
_FAILED = 1


def batch_command(
    prompts: str = typer.Argument(
        ...,
        metavar="PROMPTS",
        help="Prompt file, or a URL such as s3://bucket/prompts.parquet: .jsonl, .csv, .tsv or .parquet with a "
        "column prompt, caption or text and optionally id, seed, negative_prompt, and size (or width and height); "
        "COCO captions (.json); any other file is text with one prompt per line.",
    ),
    *,
    seed: int = image_option(0, help="Seed of the job. Rows without a seed get one that depends on it and on the row."),
    options: GenerationOptions,
    vae_slicing: bool = model_option(
        False,
        "--vae-slicing",
        help="Decode the images of a pipeline call one at a time: less memory, slightly slower. No effect with "
        "--batch 1.",
    ),
    caching: CachingOptions,
    batch: int = _worker_option(
        1, help="Rows of the same size per pipeline call. Images change slightly with this number."
    ),
    threads: int = _worker_option(
        1, help="PyTorch threads per worker. On CPUs, images change slightly with this number."
    ),
    engine: str = _worker_option(
        "local", help="local (this process) or ray (workers on this machine or on a cluster)."
    ),
    workers: int | None = _worker_option(
        None,
        help="With Ray: number of workers, each of which loads the model.",
        show_default="one per GPU, or without GPUs per CPU",
    ),
    most_workers: int | None = _worker_option(
        None, help="With Ray: largest number of workers on a cluster that scales.", show_default="--workers"
    ),
    gpus: float | None = _worker_option(
        None,
        "--gpus-per-worker",
        help="With Ray: GPUs per worker; with a fraction such as 0.5, workers share a GPU.",
        show_default="1, or without GPUs 0",
    ),
    ray_address: str | None = _worker_option(
        None,
        metavar="ADDRESS",
        help="With Ray: address of the cluster, as host:port, or auto for the one that runs on this machine.",
        show_default="a new cluster on this machine",
    ),
    output: str = output_option(
        ...,
        "--output",
        "-o",
        metavar="FOLDER",
        help="Output folder or URL, for pictures/, manifest.parquet and job.json. The same command resumes a job that "
        "was stopped or killed.",
    ),
    retry_errors: bool = output_option(False, "--retry-errors", help="Retry the rows that failed before."),
    as_json: Json = False,
) -> None:
    """Generate an image for every row of a prompt file. Jobs of any size can be interrupted and resumed.

    Ctrl-C finishes the current batches and stops; the same command resumes. The exit status is 1 if rows failed; the
    manifest contains their errors.

    Example: deepcache batch prompts.txt --output images
    """
    from DeepCache.batch import generate_batch
    from DeepCache.cli.loading import quiet_libraries

    settings = options.settings(caching.config_for(options.compile_mode), seed=seed)
    if options.preset is not None:
        settings = options.with_preset(settings, _without_weights(options))
    chosen_engine = _engine(engine, workers, most_workers, threads, gpus, ray_address)
    with BatchDisplay() as display, stop_on_signal(display.note) as stop:
        try:
            with quiet_libraries():
                summary = generate_batch(
                    prompts,
                    output,
                    settings,
                    batch=batch,
                    threads=threads,
                    device=options.device,
                    offload=options.offload,
                    vae_slicing=vae_slicing,
                    engine=chosen_engine,
                    retry_errors=retry_errors,
                    on_progress=display,
                    stop=stop,
                )
        except RuntimeError as error:
            # Such as a worker that cannot continue.
            raise OSError(str(error)) from error
        except KeyboardInterrupt:
            display.note("Stopped. Finished images are kept; the same command resumes.")
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json({**asdict(summary), "left": summary.left, "folder": output})
    else:
        _print_summary(summary, output)
    if stop() or summary.left:
        raise typer.Exit(INTERRUPTED)
    if summary.failed:
        raise typer.Exit(_FAILED)


def _without_weights(options: GenerationOptions) -> Any:
    from DeepCache.cli.loading import quiet_libraries
    from DeepCache.models import load_without_weights, set_scheduler

    with quiet_libraries():
        pipe = load_without_weights(options.model, config=options.config, own_scheduler=True)
    if options.scheduler is not None:
        set_scheduler(pipe, options.scheduler)
    return pipe


def _engine(
    name: str,
    workers: int | None,
    most_workers: int | None,
    threads: int,
    gpus: float | None,
    address: str | None,
) -> Engine:
    from DeepCache.batch import LocalEngine, RayEngine

    if name == "ray":
        return RayEngine(workers, most_workers, threads, gpus, address)
    if name != "local":
        raise ValueError(f"--engine must be local or ray, got {name!r}")
    for_ray = {
        "--workers": workers,
        "--most-workers": most_workers,
        "--gpus-per-worker": gpus,
        "--ray-address": address,
    }
    for option, value in for_ray.items():
        if value is not None:
            raise ValueError(f"{option} requires --engine ray")
    return LocalEngine()


@contextmanager
def stop_on_signal(say: Callable[[str], object]) -> Iterator[Callable[[], bool]]:
    """Gives a function that is True after the first signal to stop. The second signal stops at once."""
    received: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        say("Stopping after the current batches; press Ctrl-C again to stop at once.")

    # Schedulers of clusters and spot machines send SIGTERM.
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_summary(summary: BatchSummary, output: str) -> None:
    rate = f", {summary.drawn / summary.seconds:.2f} a second" if summary.drawn and summary.seconds else ""
    took = timedelta(seconds=round(summary.seconds))
    print(f"{summary.done} of {summary.rows} images are in {output}; this run took {took}{rate}")
    if summary.failed:
        print(f"{summary.failed} rows failed; see the errors in manifest.parquet. --retry-errors retries them")
    if summary.left:
        print(f"{summary.left} rows are left; the same command resumes")
