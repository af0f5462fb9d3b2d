"""`deepcache batch`: every row of a prompt file drawn once, here or by Ray."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from DeepCache.cli.interruption import INTERRUPTED
from DeepCache.cli.options import (
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
    VaeSlicing,
    VaeTiling,
    deepcache_config,
)
from DeepCache.cli.presets import check_preset, preset_config
from DeepCache.cli.progress import BatchDisplay
from DeepCache.config import DeepCacheConfig

if TYPE_CHECKING:
    from DeepCache.batch import BatchSummary, Engine

__all__ = ["batch_command"]

_PICTURES, _WHERE, _OUTPUT = "Pictures", "Who draws", "Output"
_DEFAULT = DeepCacheConfig()
_FAILED, _STOPPED = 1, INTERRUPTED


def batch_command(
    prompts: Annotated[
        str,
        typer.Argument(
            metavar="PROMPTS",
            help="A file of prompts, or a URL such as s3://bucket/prompts.parquet: .jsonl, .csv, .tsv or .parquet with "
            "a prompt, caption or text in each row and, if wanted, an id, seed, negative_prompt, and size (or width "
            "and height); COCO's captions as .json; else text with one prompt a line.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Where to write, a folder or a URL: pictures/, manifest.parquet and job.json. The same command again "
            "goes on where the last one was stopped or killed.",
            rich_help_panel=_OUTPUT,
        ),
    ],
    retry_errors: Annotated[
        bool,
        typer.Option("--retry-errors", help="Try the rows again that failed before.", rich_help_panel=_OUTPUT),
    ] = False,
    negative: Annotated[
        str,
        typer.Option(
            "--negative-prompt",
            "--negative",
            metavar="TEXT",
            help="What the pictures should not show, where a row does not say.",
            show_default=False,
            rich_help_panel=_PICTURES,
        ),
    ] = "",
    seed: Annotated[
        int,
        typer.Option(
            help="Rows without a seed get one that is made of this and of what they say.", rich_help_panel=_PICTURES
        ),
    ] = 0,
    steps: Annotated[int, typer.Option(help="Denoising steps.", rich_help_panel=_PICTURES)] = 50,
    guidance: Annotated[
        float | None,
        typer.Option(help="Guidance scale.", show_default="recommended for the model", rich_help_panel=_PICTURES),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            help="In pixels, where a row does not say; one number for a square.",
            show_default="the model's own",
            rich_help_panel=_PICTURES,
        ),
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
    vae_slicing: VaeSlicing = False,
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
    batch: Annotated[
        int,
        typer.Option(
            "--batch",
            help="Rows of the same size in one pipeline call. Another number gives close pictures, not the same ones.",
            rich_help_panel=_WHERE,
        ),
    ] = 1,
    threads: Annotated[
        int,
        typer.Option(
            help="Threads of PyTorch in each worker, and so its CPUs. On the CPU, too, another number gives close "
            "pictures.",
            rich_help_panel=_WHERE,
        ),
    ] = 1,
    engine: Annotated[
        str,
        typer.Option(
            help="local draws in this process, ray with a pool of workers on this machine or a cluster.",
            rich_help_panel=_WHERE,
        ),
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(
            help="With Ray: how many, each with a model of its own.",
            show_default="as many as there are GPUs, else CPUs",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    most_workers: Annotated[
        int | None,
        typer.Option(
            "--most-workers",
            help="With Ray: how far to grow on a cluster that does.",
            show_default="--workers",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(
            "--gpus-per-worker",
            help="With Ray: a part such as 0.5 puts several workers on a GPU.",
            show_default="1 where there are GPUs, else 0",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            metavar="ADDRESS",
            help="With Ray: the cluster, as host:port, or auto for that of this machine.",
            show_default="a Ray of its own",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw every row of a prompt file once, however many there are and whatever interrupts it.

    Ctrl-C finishes what is in hand and stops; the same command goes on. The exit status is 1 where rows failed: their
    errors are in the manifest.

    Example: deepcache batch prompts.txt --output pictures
    """
    from DeepCache.batch import BatchSettings, generate_batch
    from DeepCache.cli.loading import quiet_libraries
    from DeepCache.generation import parse_size
    from DeepCache.models import Lora, recommended_guidance

    stderr = Console(stderr=True, markup=False)
    cache = deepcache_config(
        interval, branch, skip_mode, forecast, guidance_reuse, plan, force_plan, compile_mode, between, threshold
    )
    check_preset(preset)
    if preset is not None:
        pipe = _without_weights(model, config, scheduler)
        scale = recommended_guidance(model, pipe) if guidance is None else guidance
        cache = preset_config(preset, scale, type(pipe.scheduler).__name__, cache, stderr)
    settings = BatchSettings(
        model=model,
        negative_prompt=negative,
        steps=steps,
        guidance=guidance,
        size=None if size is None else parse_size(size),
        seed=seed,
        scheduler=scheduler,
        dtype=dtype,
        runtime=runtime,
        cache=cache,
        vae=vae,
        loras=tuple(map(Lora.parse, loras or ())),
        embeddings=tuple(embeddings or ()),
        vae_tiling=vae_tiling,
        config=config,
    )
    if engine not in ("local", "ray"):
        raise ValueError(f"--engine must be local or ray, got {engine!r}")
    with _asked_to_stop(stderr) as stop, BatchDisplay(stderr) as display:
        try:
            with quiet_libraries():
                summary = generate_batch(
                    prompts,
                    output,
                    settings,
                    batch=batch,
                    threads=threads,
                    device=device,
                    offload=offload,
                    vae_slicing=vae_slicing,
                    engine=_engine(engine, workers, most_workers, threads, gpus, ray_address),
                    retry_errors=retry_errors,
                    on_progress=display,
                    stop=stop,
                )
        # What a run meets on its way, such as a worker that cannot go on.
        except RuntimeError as error:
            raise OSError(str(error)) from error
        except KeyboardInterrupt:
            note = "Stopped at once; what is finished stays. The same command goes on."
            stderr.print(note, soft_wrap=True, highlight=False)
            raise typer.Exit(_STOPPED) from None
    if as_json:
        print(json.dumps({**asdict(summary), "left": summary.left, "folder": output}, indent=2))
    else:
        _print_summary(summary, output)
    if stop() or summary.left:
        raise typer.Exit(_STOPPED)
    if summary.failed:
        raise typer.Exit(_FAILED)


def _without_weights(model: str, config: str | None, scheduler: str | None) -> Any:
    """The pipeline without its weights, with the scheduler that was asked for."""
    from DeepCache.cli.loading import quiet_libraries
    from DeepCache.models import load_without_weights, set_scheduler

    with quiet_libraries():
        pipe = load_without_weights(model, config=config, own_scheduler=True)
    if scheduler is not None:
        set_scheduler(pipe, scheduler)
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
    asked = {
        "--workers": workers,
        "--most-workers": most_workers,
        "--gpus-per-worker": gpus,
        "--ray-address": address,
    }
    for option, value in asked.items():
        if value is not None:
            raise ValueError(f"{option} is for Ray: give --engine ray too")
    return LocalEngine()


class _Stop:
    """Whether it is time to stop: after the first signal. The second one stops at once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._asked = False

    def __call__(self) -> bool:
        return self._asked

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        note = "Stopping once what is in hand is finished; Ctrl-C again stops at once."
        self._console.print(note, soft_wrap=True, highlight=False)


@contextmanager
def _asked_to_stop(console: Console) -> Iterator[_Stop]:
    stop = _Stop(console)
    # The second is what schedulers of clusters and spot machines send.
    before = {number: signal.signal(number, stop.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_summary(summary: BatchSummary, output: str) -> None:
    per_second = f", {summary.drawn / summary.seconds:.2f} a second" if summary.drawn and summary.seconds else ""
    took = timedelta(seconds=round(summary.seconds))
    print(f"{summary.done} of {summary.rows} pictures are in {output}; this run took {took}{per_second}")
    if summary.failed:
        print(f"{summary.failed} rows failed: manifest.parquet says why; --retry-errors tries them again")
    if summary.left:
        print(f"{summary.left} are left: the same command goes on")
