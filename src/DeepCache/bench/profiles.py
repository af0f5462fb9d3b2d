"""Shows where the time of full and shallow steps goes, for all that a benchmark measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from DeepCache.bench.benchmark import OUT_OF_MEMORY, BenchmarkSettings
from DeepCache.bench.clock import is_out_of_memory, release_memory
from DeepCache.bench.contestants import DEEPCACHE, Contestant
from DeepCache.bench.profiled_steps import PASSES, StepRun, profile_steps
from DeepCache.bench.provenance import describe_device, provenance
from DeepCache.bench.result_file import write_result
from DeepCache.bench.variants import Variant
from DeepCache.bench.workload import PipelineCall
from DeepCache.models.device import resolve_device
from DeepCache.models.loading import load_pipeline
from DeepCache.models.schedulers import set_scheduler
from DeepCache.progress import Work, WorkProgress
from DeepCache.schedule import AdaptiveSchedule, Step, UniformSchedule

__all__ = ["PROFILE_FILE", "PROFILE_FORMAT", "check_profile", "run_profile", "step_name"]

PROFILE_FORMAT = "DeepCache profile 1"
PROFILE_FILE = "profile.json"
_DEVICES = ("cpu", "cuda")
_POINT = ("width", "height", "batch", "dtype", "mode")
# Of the benchmark's settings, those that a profile depends on.
_SETTINGS = ("model", "pipeline", "unet", "scheduler", "random_weights", "steps", "guidance", "threads", "variants")


def check_profile(folder: Path, device: str | torch.device | None = None) -> None:
    """Refuses a profile that cannot be taken or written, before any work is done.

    Args:
        folder: the folder for it, which is made where it does not exist.
        device: as `load_pipeline` takes it.

    Raises:
        ValueError: the folder is a file or would be in no folder, or no profile can be taken on the device.

    Example:
        >>> check_profile(Path("nowhere/profile"), "cpu")
        Traceback (most recent call last):
        ValueError: there is no folder 'nowhere' to make 'profile' in; make it first
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file: give the name of a folder for the profile, such as profile")
    if not folder.parent.is_dir():
        raise ValueError(f"there is no folder {str(folder.parent)!r} to make {folder.name!r} in; make it first")
    kind = resolve_device(device).type
    if kind not in _DEVICES:
        raise ValueError(f"a profile can be taken on {' and '.join(_DEVICES)} alone, got {kind}; leave it out")


def step_name(step: Step) -> str:
    """What a kind of step is called.

    Example:
        >>> step_name(Step(True)), step_name(Step(False, branch=1, forecast="linear", guidance_reuse=True))
        ('full step', 'shallow step at branch 1, linear forecast, guidance reuse')
        >>> step_name(Step(False, forecast="limited", skipped=True))
        'skipped step, limited forecast'
    """
    kind = "full step" if step.full else "skipped step" if step.skipped else f"shallow step at branch {step.branch}"
    words = [kind]
    if step.order and not step.full:
        words.append(f"{step.forecast} forecast")
    if step.guidance_reuse:
        words.append("guidance reuse")
    return ", ".join(words)


def run_profile(
    settings: BenchmarkSettings,
    benchmark: dict[str, Any],
    folder: Path,
    device: str | torch.device | None = None,
    on_progress: Callable[[WorkProgress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Takes a profile of the U-Net's calls at every size, batch, type and mode that a benchmark measured.

    Every kind of step (full; shallow at a branch, with its forecast and guidance reuse; skipped, with its forecast) is
    taken several times, without PyTorch's profiler and with it. The folder gets a chrome trace for
    each of the profiles, and `profile.json`, written after each. An adaptive variant is measured as a uniform one,
    which has the same kinds of steps.

    Args:
        settings: those of the benchmark.
        benchmark: its result.
        folder: where to write to. Files of other names stay.
        device: as `load_pipeline` takes it.
        on_progress: called as the work goes on.

    Returns:
        What is in `profile.json`.

    Raises:
        ValueError: see `check_profile`.
        OSError: the model cannot be loaded or a file not be written, or the profiler does not see the device.

    Example:
        >>> from DeepCache.bench.benchmark import run_benchmark
        >>> from DeepCache.bench.variants import parse_variant
        >>> variants = (parse_variant("I=2"),)
        >>> settings = BenchmarkSettings(variants=variants, steps=4, rounds=1, warm_up=0, fewer_steps=False)
        >>> benchmark = run_benchmark(settings, Path("benchmark.json"), device="cpu")
        >>> (profile,) = run_profile(settings, benchmark, Path("profile"), device="cpu")["profiles"]
        >>> [step["step"] for step in profile["steps"]]
        ['full step', 'shallow step at branch 0']
        >>> profile["trace"]
        '64x64-batch1-float32-eager.json.gz'
    """
    check_profile(folder, device)
    found_device = resolve_device(device)
    points = _points(settings, benchmark)
    work = Work(sum(PASSES * len(point.variants) * point.size for point in points), on_progress)
    result: dict[str, Any] = {
        "format": PROFILE_FORMAT,
        **provenance(settings.seed),
        "device": describe_device(found_device),
        "settings": {name: benchmark["settings"][name] for name in _SETTINGS},
        "profiles": [],
    }
    folder.mkdir(exist_ok=True)
    dtype, pipe = "", None
    for point in points:
        if point.values["dtype"] != dtype:
            work.begin(f"loading {settings.model}")
            pipe = None
            release_memory()
            dtype = point.values["dtype"]
            pipe = _load(settings, dtype, found_device)
        work.begin(f"profile of {point.title}")
        call = point.call(settings.steps, benchmark["settings"]["guidance"], settings.seed)
        result["profiles"].append(point.values | _profile(pipe, call, point, folder, work))
        write_result(folder / PROFILE_FILE, result)
    release_memory()
    return result


@dataclass(frozen=True)
class _Point:
    """A point of the grid, whatever the scope.

    Args:
        values: what it is.
        variants: the names of the steps under each variant that has a kind of step which none before it has.
    """

    values: dict[str, Any]
    variants: dict[Variant, tuple[str, ...]]

    @property
    def title(self) -> str:
        return "{width}×{height}, batch {batch}, {dtype}, {mode}".format(**self.values)

    @property
    def trace(self) -> str:
        return "{width}x{height}-batch{batch}-{dtype}-{mode}.json.gz".format(**self.values)

    @property
    def size(self) -> float:
        return float(self.values["width"] * self.values["height"] * self.values["batch"])

    def call(self, steps: int, guidance: float | None, seed: int) -> PipelineCall:
        size = (self.values["width"], self.values["height"])
        return PipelineCall(self.values["batch"], size, steps, guidance, seed)


def _points(settings: BenchmarkSettings, benchmark: dict[str, Any]) -> list[_Point]:
    """What was measured."""
    found: dict[tuple[Any, ...], _Point] = {}
    for cell in benchmark["cells"]:
        if cell["status"] not in ("partial", "done"):
            continue
        values = {name: cell[name] for name in _POINT}
        point = found.setdefault(tuple(values.values()), _Point(values, {}))
        measured = {row["variant"] for row in cell["rows"] if row["method"] == DEEPCACHE and row["seconds"]}
        known = {name for names in point.variants.values() for name in names}
        for variant in map(_steady, settings.variants):
            names = tuple(step_name(step) for step in variant.config.steps(cell["unet_calls"]))
            if variant.name in measured and not known.issuperset(names):
                point.variants[variant] = names
                known.update(names)
    return [point for point in found.values() if point.variants]


def _steady(variant: Variant) -> Variant:
    """A variant with the same kinds of steps whose full steps are known before a run."""
    schedule = variant.config.effective_schedule
    if not isinstance(schedule, AdaptiveSchedule):
        return variant
    uniform = UniformSchedule(schedule.interval, schedule.branch)
    return replace(variant, config=replace(variant.config, schedule=uniform))


def _load(settings: BenchmarkSettings, dtype: str, device: torch.device) -> Any:
    pipe = load_pipeline(settings.model, dtype=dtype, device=device)
    pipe.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    if settings.scheduler is not None:
        set_scheduler(pipe, settings.scheduler)
    return pipe


def _contestant(pipe: Any, call: PipelineCall, variant: Variant, mode: str) -> Contestant:
    return Contestant(pipe, DEEPCACHE, call, variant, unet_only=True, mode=mode)


def _profile(pipe: Any, call: PipelineCall, point: _Point, folder: Path, work: Work) -> dict[str, Any]:
    torch.compiler.reset()
    release_memory()
    try:
        runs = [
            StepRun(_contestant(pipe, call, variant, point.values["mode"]), names)
            for variant, names in point.variants.items()
        ]
        steps = profile_steps(runs, folder / point.trace, lambda: work.add(point.size))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return {"trace": None, "reason": OUT_OF_MEMORY, "steps": []}
    return {"trace": point.trace, "reason": "", "steps": steps}
