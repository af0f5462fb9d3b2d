"""Measures the speed of DeepCache over a grid of sizes, batches, dtypes, modes and settings."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import torch

from DeepCache.bench.benchmark_case import (
    BASELINE,
    CAPTURED,
    DEEPCACHE,
    FEWER_STEPS,
    GRAPHS,
    MODES,
    REFERENCE,
    BenchmarkCase,
)
from DeepCache.bench.checks import check_lists, check_minimum
from DeepCache.bench.clock import Timing, is_out_of_memory, release_memory, timed
from DeepCache.bench.provenance import describe_device, provenance
from DeepCache.bench.reference import reference_helper_class
from DeepCache.bench.result_file import BENCHMARK_FORMAT, resumed_result, write_result
from DeepCache.bench.variants import PUBLISHED_VARIANTS, Variant, check_names
from DeepCache.bench.workload import PipelineCall, UnetLoop, default_size
from DeepCache.config import DeepCacheConfig
from DeepCache.engine.checks import check_settings
from DeepCache.engine.cost import Costs, count_costs
from DeepCache.engine.layouts import branch_of
from DeepCache.engine.unets import unets_of
from DeepCache.models.architectures import ARCHITECTURES
from DeepCache.models.device import resolve_device, resolve_dtype
from DeepCache.models.loading import load_pipeline, recommended_guidance
from DeepCache.progress import Work, WorkProgress
from DeepCache.runtime import branch_for, check_runtime, device_for
from DeepCache.schedule import Step, mean_cost

__all__ = ["SCOPES", "BenchmarkSettings", "is_complete", "run_benchmark"]

SCOPES = ("pipeline", "unet")
"""The parts that can be timed (the whole pipeline call, or the calls of the U-Net without anything between them)."""

OUT_OF_MEMORY = "out of memory"
_UNFINISHED = ("waiting", "partial")


@dataclass(frozen=True)
class BenchmarkSettings:
    """Settings of a benchmark.

    Args:
        model (`str`, defaults to `"shapes"`):
            The model, as for `load_pipeline`. An architecture by name gets random weights.
        variants (`tuple` of `Variant`):
            Settings of DeepCache; by default those in the table of the diffusers documentation.
        sizes (`tuple` of width and height, *optional*):
            In pixels; by default the default size of the pipeline.
        batches (`tuple` of `int`, defaults to `(1,)`):
            Images in one pipeline call.
        dtypes (`tuple` of `str`, defaults to `("auto",)`):
            As for `load_pipeline`.
        modes (`tuple` of `str`, defaults to `("eager",)`):
            How the U-Net runs: `"eager"`; with `torch.compile` `"regional"`, `"compiled"`, `"captured"` or
            `"autotuned"`, the last two on a CUDA device only; as graphs `"openvino"` or `"onnx"`.
        scopes (`tuple` of `str`, defaults to both):
            `"pipeline"`, the whole call, and `"unet"`, the calls of the U-Net alone.
        steps (`int`, defaults to `50`):
            Denoising steps.
        rounds (`int`, defaults to `5`):
            Timed rounds. In each round every case runs once, and a different one goes first.
        warm_up (`int`, defaults to `1`):
            Rounds before those, which are discarded.
        fewer_steps (`bool`, defaults to `True`):
            Whether to also measure fewer steps without caching at the cost of each variant.
        scheduler (`str`, *optional*):
            As for `set_scheduler`; by default that of the model.
        guidance (`float`, *optional*):
            The guidance scale; by default the one recommended for the model.
        reference (`Path`, *optional*):
            The wheel of the reference package, or the folder that it is unpacked to, to also measure it.
        seed (`int`, defaults to `0`):
            Seed of the latents.

    Raises:
        ValueError: a value is out of range.
    """

    model: str = "shapes"
    variants: tuple[Variant, ...] = PUBLISHED_VARIANTS
    sizes: tuple[tuple[int, int], ...] = ()
    batches: tuple[int, ...] = (1,)
    dtypes: tuple[str, ...] = ("auto",)
    modes: tuple[str, ...] = ("eager",)
    scopes: tuple[str, ...] = SCOPES
    steps: int = 50
    rounds: int = 5
    warm_up: int = 1
    fewer_steps: bool = True
    scheduler: str | None = None
    guidance: float | None = None
    reference: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        lists = ("variants", "batches", "dtypes", "modes", "scopes")
        check_lists(self, lists, (*lists, "sizes"))
        check_names(self.variants)
        adaptive = [variant.name for variant in self.variants if variant.adaptive]
        if adaptive and "unet" in self.scopes:
            raise ValueError(
                f"{adaptive[0]!r} decides during a run which steps are full, and the scope 'unet' repeats one call; "
                "use the scope 'pipeline' only (--scopes pipeline)"
            )
        check_minimum("a batch", self.batches, 1)
        check_minimum("steps", [self.steps], 2)
        check_minimum("rounds", [self.rounds], 1)
        check_minimum("warm_up", [self.warm_up], 0)
        for name, allowed in (("modes", tuple(MODES)), ("scopes", SCOPES)):
            for value in getattr(self, name):
                if value not in allowed:
                    raise ValueError(f"{name} are {', '.join(allowed[:-1])} and {allowed[-1]}, got {value!r}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be between 0 and 2**63 - 1, got {self.seed}")
        if self.guidance is not None and not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ValueError(f"guidance must be a number >= 0, got {self.guidance}")
        for width, height in self.sizes:
            if width < 8 or height < 8 or width % 8 or height % 8:
                raise ValueError(f"width and height must be multiples of 8, got {width}x{height}")


def is_complete(result: dict[str, Any]) -> bool:
    """Whether every cell of a benchmark's grid was measured or needs too much memory."""
    return all(cell["status"] not in _UNFINISHED for cell in result["cells"])


def run_benchmark(
    settings: BenchmarkSettings,
    output: Path,
    device: str | torch.device | None = None,
    on_progress: Callable[[WorkProgress], None] = lambda progress: None,
    stop_after: float | None = None,
) -> dict[str, Any]:
    """Measures every cell of the grid. The result file is written after every round, so a stopped run resumes.

    In a cell, the pipeline without caching and every variant run in turn in one process, so that other load on the
    machine affects them equally; each ratio is taken within a round. A cell that needs too much memory is marked as
    such.

    Args:
        settings: the settings.
        output: the result file. What it has is not measured again.
        device: as for `load_pipeline`.
        on_progress: called during the work.
        stop_after: seconds after which no round starts, nor one that would probably end later. One round is always
            measured.

    Returns:
        The result, as in the file; see `is_complete`.

    Raises:
        ValueError: the settings do not fit the model, or the file is of another run.
        TypeError: DeepCache does not support the U-Net of the pipeline.
        OSError: the model cannot be loaded or the file cannot be written.

    Example:
        >>> from pathlib import Path
        >>> settings = BenchmarkSettings(steps=6, rounds=1, warm_up=0, scopes=("unet",), fewer_steps=False)
        >>> result = run_benchmark(settings, Path("benchmark.json"), device="cpu")
        >>> [row["method"] for row in result["cells"][0]["rows"]]
        ['no caching', 'DeepCache', 'DeepCache', 'DeepCache']
    """
    stop = _Stop(stop_after)
    found_device = resolve_device(device)
    if settings.reference is not None:
        reference_helper_class(settings.reference)
    if captured := [mode for mode in settings.modes if mode in CAPTURED and found_device.type != "cuda"]:
        raise ValueError(
            f"the mode {captured[0]} captures CUDA graphs, and the device is {found_device.type}; omit the mode"
        )
    for mode in settings.modes:
        if mode in GRAPHS:
            found_device = resolve_device(device_for(mode, device))
            for variant in settings.variants:
                check_runtime(mode, variant.config)
    work = Work(0.0, on_progress)
    work.begin(f"loading {settings.model}")
    # By their full names, so that equal ones are found and a file has what `auto` was.
    names = [str(resolve_dtype(name, found_device)).removeprefix("torch.") for name in settings.dtypes]
    settings = replace(settings, dtypes=tuple(names))
    dtype = names[0]
    pipe = _load_checked(settings, dtype, found_device)
    result = resumed_result(output, _empty_result(settings, pipe, found_device))
    waiting = [cell for cell in result["cells"] if cell["status"] in _UNFINISHED]
    work.total = sum(_expected_work(settings, cell) for cell in waiting)
    with warnings.catch_warnings():
        # Random weights give values that are not colours.
        warnings.filterwarnings("ignore", "invalid value encountered in cast", RuntimeWarning)
        for cell in waiting:
            if stop.due():
                break
            if cell["dtype"] != dtype:
                del pipe
                release_memory()
                dtype = cell["dtype"]
                pipe = _load_checked(settings, dtype, found_device)
            scope = {"pipeline": "whole pipeline", "unet": "U-Net alone"}[cell["scope"]]
            work.begin("{width}×{height}, batch {batch}, {dtype}, {mode}, ".format(**cell) + scope)
            expected = work.done + _expected_work(settings, cell)
            _Cell(settings, pipe, cell, partial(write_result, output, result), work, stop).measure()
            if cell["status"] in _UNFINISHED:
                break
            work.add(expected - work.done)
            write_result(output, result)
    release_memory()
    return result


def load_benchmarked(settings: BenchmarkSettings, dtype: str, device: torch.device) -> Any:
    """The pipeline of a benchmark with its scheduler."""
    return load_pipeline(settings.model, dtype=dtype, device=device, scheduler=settings.scheduler, progress_bar=False)


def _load_checked(settings: BenchmarkSettings, dtype: str, device: torch.device) -> Any:
    pipe = load_benchmarked(settings, dtype, device)
    most = getattr(pipe.scheduler.config, "num_train_timesteps", None)
    if most is not None and settings.steps > most:
        raise ValueError(f"steps must be {most} or fewer for this model, got {settings.steps}")
    for unet in unets_of(pipe).values():
        for variant in settings.variants:
            check_settings(variant.config, unet, pipe)
    return pipe


def _empty_result(settings: BenchmarkSettings, pipe: Any, device: torch.device) -> dict[str, Any]:
    # A folder takes precedence over an architecture of its name.
    random_weights = settings.model in ARCHITECTURES and not Path(settings.model).is_dir()
    # A tiny architecture of a video pipeline has another size than the default of its class.
    own = ARCHITECTURES[settings.model].size if random_weights else default_size(pipe)
    sizes = settings.sizes or (own,)
    origin = provenance(settings.seed)
    for mode in settings.modes:
        if mode in GRAPHS:
            from DeepCache.export.formats import graph_format
            from DeepCache.export.identity import versions_of

            origin["versions"] |= versions_of(graph_format(mode).packages)
    grid = product(settings.dtypes, settings.modes, sizes, settings.batches, settings.scopes)
    return {
        "format": BENCHMARK_FORMAT,
        **origin,
        "device": describe_device(device),
        "settings": {
            "model": settings.model,
            "pipeline": type(pipe).__name__,
            "unet": type(next(iter(unets_of(pipe).values()))).__name__,
            "scheduler": type(pipe.scheduler).__name__,
            "random_weights": random_weights,
            "steps": settings.steps,
            "guidance": _guidance(settings, pipe),
            "rounds": settings.rounds,
            "warm_up": settings.warm_up,
            "threads": torch.get_num_threads(),
            "variants": {variant.name: variant.config.to_dict() for variant in settings.variants},
            "reference": settings.reference is not None,
            "fewer_steps": settings.fewer_steps,
            "grid": {
                "dtypes": list(settings.dtypes),
                "modes": list(settings.modes),
                "sizes": [list(size) for size in sizes],
                "batches": list(settings.batches),
                "scopes": list(settings.scopes),
            },
        },
        "cells": [
            {
                "scope": scope,
                "width": width,
                "height": height,
                "batch": batch,
                "dtype": dtype,
                "mode": mode,
                "status": "waiting",
                "reason": "",
                "unet_calls": None,
                "full_gmacs": None,
                "rows": [],
            }
            for dtype, mode, (width, height), batch, scope in grid
        ],
    }


def _guidance(settings: BenchmarkSettings, pipe: Any) -> float | None:
    return settings.guidance if settings.guidance is not None else recommended_guidance(settings.model, pipe)


def _expected_work(settings: BenchmarkSettings, cell: dict[str, Any]) -> float:
    """In pixels of runs without caching, roughly."""
    cases = 1 + 0.4 * len(settings.variants) * (1 + settings.fewer_steps + (settings.reference is not None))
    done = len(cell["rows"][0]["seconds"]) if cell["rows"] else 0
    rounds = settings.warm_up + settings.rounds - done
    return float(cases * rounds * cell["width"] * cell["height"] * cell["batch"])


@dataclass
class _Stop:
    """When to start no further round."""

    after: float | None
    begin: float = field(default_factory=monotonic)
    any_round: bool = False

    def due(self, next_round: float = 0.0) -> bool:
        """Whether to stop before a round of so many seconds. One round is always measured, so that a run which is
        repeated ends eventually."""
        return self.after is not None and self.any_round and monotonic() - self.begin + next_round > self.after


@dataclass
class _Cell:
    """Measures the missing rounds of a cell.

    Attributes:
        on_graphs: the pipeline with graphs in another runtime, by the branch at which they are cut.
        shares: multiply-accumulates as a share of those without caching, by method and name of the variant.
    """

    settings: BenchmarkSettings
    pipe: Any
    cell: dict[str, Any]
    save: Callable[[], None]
    work: Work
    stop: _Stop
    on_graphs: dict[int, Any] = field(default_factory=dict)
    shares: dict[tuple[str, str], float] = field(default_factory=dict)

    def measure(self) -> None:
        torch.compiler.reset()
        release_memory()
        cases: list[BenchmarkCase] = []
        try:
            cases.extend(self._cases())
            self._measure_rounds(cases)
        # Those of the other cases are caught in `_run`.
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.cell |= {"status": OUT_OF_MEMORY, "reason": _first_line(error)}

    def _cases(self) -> Iterator[BenchmarkCase]:
        cell, settings = self.cell, self.settings
        size = (cell["width"], cell["height"])
        call = PipelineCall(cell["batch"], size, settings.steps, _guidance(settings, self.pipe), settings.seed)
        baseline = self._case(BASELINE, call)
        yield baseline
        cached = {variant: self._case(DEEPCACHE, call, variant) for variant in settings.variants}
        yield from cached.values()
        # The reference package wraps layers, which graphs do not have.
        if settings.reference is not None and cell["mode"] not in GRAPHS:
            for variant in settings.variants:
                if variant.in_reference:
                    yield self._case(REFERENCE, call, variant, reference=settings.reference)
        costs = self._costs(baseline.loop)
        calls = baseline.loop.calls
        cell |= {"unet_calls": calls, "full_gmacs": round(costs.full / 1e9, 3)}
        for variant in settings.variants:
            expected = mean_cost(variant.config.steps(calls), costs)
            self.shares[DEEPCACHE, variant.name] = _share_of_a_run(cached[variant]) if variant.adaptive else expected
            if variant.in_reference:
                self.shares[REFERENCE, variant.name] = mean_cost(_reference_steps(variant, baseline.loop), costs)
        if settings.fewer_steps:
            shares = [self.shares[DEEPCACHE, variant.name] for variant in settings.variants]
            fewer = {max(1, round(settings.steps * share)) for share in shares}
            for steps in sorted(fewer - {settings.steps}, reverse=True):
                yield self._case(FEWER_STEPS, replace(call, steps=steps), unets_like=baseline)

    def _case(self, method: str, call: PipelineCall, variant: Variant | None = None, **options: Any) -> BenchmarkCase:
        mode, pipe = self.cell["mode"], self.pipe
        if mode in GRAPHS:
            # All cases with a cut at this branch share the graphs, which hold the weights.
            branch = 0 if variant is None else branch_for(variant.config)
            if branch not in self.on_graphs:
                from DeepCache.export import use_runtime

                self.on_graphs[branch] = copy.copy(self.pipe)
                use_runtime(self.on_graphs[branch], mode, DeepCacheConfig() if variant is None else variant.config)
            pipe = self.on_graphs[branch]
        return BenchmarkCase(pipe, method, call, variant, unet_only=self.cell["scope"] == "unet", mode=mode, **options)

    def _costs(self, loop: UnetLoop) -> Costs:
        unet = next(iter(unets_of(self.pipe).values()))
        numbers = sorted({number for variant in self.settings.variants for number in variant.config.branches})
        return count_costs(unet, loop.args, loop.kwargs, [branch_of(unet, number) for number in numbers])

    def _measure_rounds(self, cases: list[BenchmarkCase]) -> None:
        cell, settings = self.cell, self.settings
        if not cell["rows"]:
            calls = cases[0].loop.calls
            cell["rows"] = [_row(case, calls, self.shares) for case in cases]
        # The cases are always made in the same order.
        entries = list(zip(cases, cell["rows"], strict=True))
        done = len(cell["rows"][0]["seconds"])
        longest = 0.0
        work_of_a_round = _expected_work(settings, cell) / max(1, settings.warm_up + settings.rounds - done)
        for number in range(done - settings.warm_up, settings.rounds):
            if self.stop.due(longest):
                return
            begin = monotonic()
            turn = number % len(entries)
            measured = [(row, self._run(case, row)) for case, row in [*entries[turn:], *entries[:turn]]]
            if number >= done or cell["mode"] == "eager":
                # A warm-up that compiles does not predict the next rounds.
                longest = max(longest, monotonic() - begin)
            self.work.add(work_of_a_round)
            if number < done:
                continue
            for row, timing in measured:
                if timing is not None:
                    row["seconds"].append(round(timing.seconds, 6))
                    row["peak_memory"] = max(row["peak_memory"] or 0, timing.peak_memory or 0) or None
            for row in cell["rows"]:
                _summarise(row, cell["rows"][0])
            cell["status"] = "partial" if number + 1 < settings.rounds else "done"
            self.stop.any_round = True
            self.save()

    def _run(self, case: BenchmarkCase, row: dict[str, Any]) -> Timing | None:
        """Times one run; None if it fails, now or before."""
        if row["error"]:
            return None
        try:
            timing = timed(case.run, case.device)
            row["bytes_kept"] = case.release()
        # Any error of one case is recorded, and the others continue.
        except Exception as error:
            if case.method == BASELINE:
                raise
            row["error"] = OUT_OF_MEMORY if is_out_of_memory(error) else _first_line(error)
            case.release()
            release_memory()
            return None
        if row["first_seconds"] is None:
            row["first_seconds"] = round(timing.seconds, 6)
        if row["pattern"] is None and (stats := case.stats) is not None:
            # Recorded from the run, which may have more than one U-Net call per step.
            row |= {"pattern": stats.pattern, "mac_share": stats.mac_share}
        return timing


def _share_of_a_run(case: BenchmarkCase) -> float:
    case.run()
    stats = case.stats
    case.release()
    if stats is None or stats.mac_share is None:
        raise ValueError("the cost of this model's steps cannot be counted, which an adaptive schedule requires")
    return stats.mac_share


def _reference_steps(variant: Variant, loop: UnetLoop) -> Iterator[Step]:
    """The steps of the reference package: it looks a timestep up by its value, and finds the first of equal ones."""
    values = loop.timesteps.tolist()
    places = [values.index(value) for value in values[loop.first :]]
    for place in places:
        yield Step((place - places[0]) % variant.config.cache_interval == 0, variant.config.cache_branch_id)


def _row(case: BenchmarkCase, calls: int, shares: dict[tuple[str, str], float]) -> dict[str, Any]:
    """A row of a cell before it is measured."""
    variant, steps = case.variant, case.call.steps
    full = case.method in (BASELINE, FEWER_STEPS)
    unknown = ("first_seconds", "median", "spread", "speed_up", "speed_up_spread", "limit", "share_of_limit")
    return {
        "method": case.method,
        "variant": variant.name if variant is not None else f"{steps} steps",
        "steps": steps,
        "pattern": "F" * case.loop.calls if full else None,
        "mac_share": case.loop.calls / calls if variant is None else shares[case.method, variant.name],
        "seconds": [],
        **dict.fromkeys((*unknown, "bytes_kept", "peak_memory")),
        "error": "",
    }


def _summarise(row: dict[str, Any], baseline: dict[str, Any]) -> None:
    """Computes the figures of a row from its timings and those of the pipeline without caching."""
    if not row["seconds"]:
        return
    ratios = [before / after for before, after in zip(baseline["seconds"], row["seconds"], strict=False)]
    row |= {
        "median": median(row["seconds"]),
        "spread": [min(row["seconds"]), max(row["seconds"])],
        "speed_up": median(ratios),
        "speed_up_spread": [min(ratios), max(ratios)],
    }
    if row["mac_share"] is not None:
        row |= {"limit": 1 / row["mac_share"], "share_of_limit": row["speed_up"] * row["mac_share"]}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
