"""Shows where the time of full and shallow steps goes, at every point that a benchmark measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from DeepCache.bench.benchmark import OUT_OF_MEMORY, BenchmarkSettings, load_benchmarked
from DeepCache.bench.benchmark_case import DEEPCACHE, BenchmarkCase
from DeepCache.bench.clock import is_out_of_memory, release_memory
from DeepCache.bench.profiled_steps import PASSES, profile_steps
from DeepCache.bench.provenance import describe_device, provenance
from DeepCache.bench.result_file import write_result
from DeepCache.bench.variants import Variant
from DeepCache.bench.workload import PipelineCall
from DeepCache.models.device import resolve_device
from DeepCache.progress import Work, WorkProgress
from DeepCache.schedule import AdaptiveSchedule, Step, UniformSchedule

__all__ = ["PROFILE_FILE", "PROFILE_FORMAT", "check_profile", "run_profile", "step_name"]

PROFILE_FORMAT = "DeepCache profile 1"
PROFILE_FILE = "profile.json"
_DEVICES = ("cpu", "cuda")
# The point of a benchmark's grid, regardless of the scope.
_POINT = ("width", "height", "batch", "dtype", "mode")
# The settings of the benchmark on which a profile depends.
_SETTINGS = ("model", "pipeline", "unet", "scheduler", "random_weights", "steps", "guidance", "threads", "variants")


def check_profile(folder: Path, device: str | torch.device | None = None) -> None:
    """Raises `ValueError` if no profile can be taken on the device or written to the folder."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file: give the name of a folder for the profile, such as profile")
    if not folder.parent.is_dir():
        raise ValueError(f"the folder {str(folder.parent)!r} for {folder.name!r} does not exist; create it first")
    kind = resolve_device(device).type
    if kind not in _DEVICES:
        raise ValueError(f"a profile requires one of the devices {' and '.join(_DEVICES)}, got {kind}; omit it")


def step_name(step: Step) -> str:
    """The name of a kind of step, such as `shallow step at branch 1, linear forecast, guidance reuse`."""
    words = ["full step" if step.full else "skipped step" if step.skipped else f"shallow step at branch {step.branch}"]
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
    """Profiles the U-Net calls at every size, batch, dtype and mode that a benchmark measured.

    Every kind of step (full; shallow at a branch, with its forecast and guidance reuse; skipped, with its forecast)
    runs several times, without PyTorch's profiler and with it. The folder gets a chrome trace per point, and
    `profile.json`, written after each. An adaptive variant is profiled as a uniform one with the same kinds of steps.

    Raises:
        ValueError: see `check_profile`.
        OSError: the model cannot be loaded, a file cannot be written, or the profiler does not see the device.
    """
    check_profile(folder, device)
    found_device = resolve_device(device)
    points = _points(settings, benchmark)
    work = Work(sum(PASSES * len(names) * _pixels(point) for point, names in points), on_progress)
    result: dict[str, Any] = {
        "format": PROFILE_FORMAT,
        **provenance(settings.seed),
        "device": describe_device(found_device),
        "settings": {name: benchmark["settings"][name] for name in _SETTINGS},
        "profiles": [],
    }
    folder.mkdir(exist_ok=True)
    guidance = benchmark["settings"]["guidance"]
    dtype, pipe = "", None
    for point, names in points:
        if point["dtype"] != dtype:
            work.begin(f"loading {settings.model}")
            pipe = None
            release_memory()
            dtype = point["dtype"]
            pipe = load_benchmarked(settings, dtype, found_device)
        work.begin("profile of {width}×{height}, batch {batch}, {dtype}, {mode}".format(**point))
        size = (point["width"], point["height"])
        call = PipelineCall(point["batch"], size, settings.steps, guidance, settings.seed)
        result["profiles"].append(point | _profile(pipe, call, point, names, folder, work))
        write_result(folder / PROFILE_FILE, result)
    release_memory()
    return result


def _points(
    settings: BenchmarkSettings, benchmark: dict[str, Any]
) -> list[tuple[dict[str, Any], dict[Variant, tuple[str, ...]]]]:
    """The points that were measured, each with the names of the steps of every variant that has a new kind of step."""
    found: dict[tuple[Any, ...], tuple[dict[str, Any], dict[Variant, tuple[str, ...]]]] = {}
    for cell in benchmark["cells"]:
        if cell["status"] not in ("partial", "done"):
            continue
        point = {name: cell[name] for name in _POINT}
        _, chosen = found.setdefault(tuple(point.values()), (point, {}))
        measured = {row["variant"] for row in cell["rows"] if row["method"] == DEEPCACHE and row["seconds"]}
        known = {name for names in chosen.values() for name in names}
        for variant in map(_not_adaptive, settings.variants):
            names = tuple(step_name(step) for step in variant.config.steps(cell["unet_calls"]))
            if variant.name in measured and not known.issuperset(names):
                chosen[variant] = names
                known.update(names)
    return [(point, names) for point, names in found.values() if names]


def _not_adaptive(variant: Variant) -> Variant:
    """A variant with the same kinds of steps whose full steps are known before a run."""
    schedule = variant.config.effective_schedule
    if not isinstance(schedule, AdaptiveSchedule):
        return variant
    uniform = UniformSchedule(schedule.interval, schedule.branch)
    return replace(variant, config=replace(variant.config, schedule=uniform))


def _pixels(point: dict[str, Any]) -> float:
    return float(point["width"] * point["height"] * point["batch"])


def _profile(
    pipe: Any,
    call: PipelineCall,
    point: dict[str, Any],
    variants: dict[Variant, tuple[str, ...]],
    folder: Path,
    work: Work,
) -> dict[str, Any]:
    trace = "{width}x{height}-batch{batch}-{dtype}-{mode}.json.gz".format(**point)
    torch.compiler.reset()
    release_memory()
    try:
        runs = [
            (BenchmarkCase(pipe, DEEPCACHE, call, variant, unet_only=True, mode=point["mode"]), names)
            for variant, names in variants.items()
        ]
        steps = profile_steps(runs, folder / trace, lambda: work.add(_pixels(point)))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return {"trace": None, "reason": OUT_OF_MEMORY, "steps": []}
    return {"trace": trace, "reason": "", "steps": steps}
