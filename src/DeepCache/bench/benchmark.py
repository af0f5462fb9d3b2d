"""Measures the speed of DeepCache over a grid of sizes, batches, settings, types and modes."""

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

from DeepCache.bench.clock import Timing, is_out_of_memory, release_memory, timed
from DeepCache.bench.contestants import BASELINE, CAPTURED, DEEPCACHE, FEWER_STEPS, GRAPHS, MODES, REFERENCE, Contestant
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
from DeepCache.models.schedulers import set_scheduler
from DeepCache.progress import Work, WorkProgress
from DeepCache.runtime import branch_for, check_runtime, device_for
from DeepCache.schedule import Step, mean_cost

__all__ = ["SCOPES", "BenchmarkSettings", "is_complete", "run_benchmark"]

SCOPES = ("pipeline", "unet")
"""What can be timed, the whole pipeline call or the calls of the U-Net with nothing in between."""

OUT_OF_MEMORY = "out of memory"
LARGEST_SEED = 2**63 - 1
_UNFINISHED = ("waiting", "partial")


@dataclass(frozen=True)
class BenchmarkSettings:
    """What to measure.

    Args:
        model (`str`, defaults to `"shapes"`):
            What `load_pipeline` takes: a name, an architecture that gets random weights, a folder, or a hub id.
        variants (`tuple` of `Variant`):
            Settings of DeepCache; those of the table in the documentation of diffusers by default.
        sizes (`tuple` of width and height, *optional*):
            In pixels; the pipeline's own by default.
        batches (`tuple` of `int`, defaults to `(1,)`):
            Pictures in one pipeline call.
        dtypes (`tuple` of `str`, defaults to `("auto",)`):
            As `load_pipeline` takes them.
        modes (`tuple` of `str`, defaults to `("eager",)`):
            How the U-Net runs: those of `DeepCache.bench.contestants.MODES`. `"captured"` and `"autotuned"` take
            a CUDA device.
        scopes (`tuple` of `str`, defaults to both):
            `"pipeline"`, the whole call, and `"unet"`, the calls of the U-Net alone.
        steps (`int`, defaults to `50`):
            Denoising steps.
        rounds (`int`, defaults to `5`):
            How often everything is timed. In each round every contestant runs once, and another one goes first.
        warm_up (`int`, defaults to `1`):
            Rounds before those, which are discarded.
        fewer_steps (`bool`, defaults to `True`):
            Whether to measure fewer steps without caching at the cost of each variant too.
        scheduler (`str`, *optional*):
            As `set_scheduler` takes it; the model's own by default.
        guidance (`float`, *optional*):
            The guidance scale; the one recommended for the model by default.
        reference (`Path`, *optional*):
            The wheel of the reference package, or the folder that it is unpacked to, to measure it too.
        seed (`int`, defaults to `0`):
            Seed of the latents.

    Raises:
        ValueError: a value is out of its range.
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
        for name in ("variants", "batches", "dtypes", "modes", "scopes"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name one or more, got none")
        for name in ("variants", "sizes", "batches", "dtypes", "modes", "scopes"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must differ from each other, got one of them twice")
        check_names(self.variants)
        adaptive = [variant.name for variant in self.variants if variant.adaptive]
        if adaptive and "unet" in self.scopes:
            raise ValueError(
                f"{adaptive[0]!r} decides during a run which steps are full, and the scope 'unet' repeats one call; "
                "take the scope 'pipeline' alone (--scopes pipeline)"
            )
        for name, value, least in (
            *(("a batch", batch, 1) for batch in self.batches),
            ("steps", self.steps, 2),
            ("rounds", self.rounds, 1),
            ("warm_up", self.warm_up, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}")
        for name, allowed in (("modes", tuple(MODES)), ("scopes", SCOPES)):
            for value in getattr(self, name):
                if value not in allowed:
                    raise ValueError(f"{name} are {', '.join(allowed[:-1])} and {allowed[-1]}, got {value!r}")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed must be from 0 to 2**63 - 1, got {self.seed}")
        if self.guidance is not None and not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ValueError(f"guidance must be a number from 0, got {self.guidance}")
        for width, height in self.sizes:
            if width < 8 or height < 8 or width % 8 or height % 8:
                raise ValueError(f"width and height must be multiples of 8, got {width}x{height}")


def is_complete(result: dict[str, Any]) -> bool:
    """Whether every cell of a benchmark's grid was measured, or could not be."""
    return all(cell["status"] not in _UNFINISHED for cell in result["cells"])


def run_benchmark(
    settings: BenchmarkSettings,
    output: Path,
    device: str | torch.device | None = None,
    on_progress: Callable[[WorkProgress], None] = lambda progress: None,
    stop_after: float | None = None,
) -> dict[str, Any]:
    """Measures every cell of the grid and writes the result file after every round, so that a run that was stopped goes
    on where it was.

    In a cell, the pipeline without caching and every variant run in turn, in one process, so that whatever else the
    machine does hits all alike; each ratio is taken within a round. A cell that needs more memory than there is is
    marked, and the next one begun.

    Args:
        settings: what to measure.
        output: the result file. What it holds already is not measured again.
        device: as `load_pipeline` takes it.
        on_progress: called as the work goes on.
        stop_after: seconds after which no further round is begun; one that would take longer than is left is not.

    Returns:
        The result, as in the file; see `is_complete`.

    Raises:
        ValueError: the settings do not fit the model, or the file is of another run.
        TypeError: the pipeline has no U-Net that DeepCache can cut.
        OSError: the model cannot be loaded or the file not be written.

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
        # Told before anything is loaded, where it is not there.
        reference_helper_class(settings.reference)
    if captured := [mode for mode in settings.modes if mode in CAPTURED and found_device.type != "cuda"]:
        raise ValueError(
            f"the mode {captured[0]} captures CUDA graphs, and the device is {found_device.type}; leave it out"
        )
    for mode in settings.modes:
        if mode in GRAPHS:
            found_device = resolve_device(device_for(mode, device))
            for variant in settings.variants:
                check_runtime(mode, variant.config)
    work = Work(0.0, on_progress)
    work.begin(f"loading {settings.model}")
    # By their full names, so that one that is meant twice is found and a file says what `auto` was.
    names = [str(resolve_dtype(name, found_device)).removeprefix("torch.") for name in settings.dtypes]
    settings = replace(settings, dtypes=tuple(names))
    dtype = names[0]
    pipe = _load(settings, dtype, found_device)
    result = resumed_result(output, _fresh(settings, pipe, found_device))
    waiting = [cell for cell in result["cells"] if cell["status"] in _UNFINISHED]
    work.total = sum(_expected_work(settings, cell) for cell in waiting)
    with warnings.catch_warnings():
        # Random weights draw what is no colour.
        warnings.filterwarnings("ignore", "invalid value encountered in cast", RuntimeWarning)
        for cell in waiting:
            if stop.due():
                break
            if cell["dtype"] != dtype:
                del pipe
                release_memory()
                dtype = cell["dtype"]
                pipe = _load(settings, dtype, found_device)
            work.begin(_title(cell))
            expected = work.done + _expected_work(settings, cell)
            _Cell(settings, pipe, cell, partial(write_result, output, result), work, stop).measure()
            if cell["status"] in _UNFINISHED:
                break
            work.add(expected - work.done)
            write_result(output, result)
    release_memory()
    return result


def _load(settings: BenchmarkSettings, dtype: str, device: torch.device) -> Any:
    pipe = load_pipeline(settings.model, dtype=dtype, device=device)
    pipe.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    if settings.scheduler is not None:
        set_scheduler(pipe, settings.scheduler)
    most = getattr(pipe.scheduler.config, "num_train_timesteps", None)
    if most is not None and settings.steps > most:
        raise ValueError(f"steps must be {most} or fewer for this model, got {settings.steps}")
    for unet in unets_of(pipe).values():
        for variant in settings.variants:
            check_settings(variant.config, unet, pipe)
    return pipe


def _fresh(settings: BenchmarkSettings, pipe: Any, device: torch.device) -> dict[str, Any]:
    """The result before anything is measured."""
    # A folder goes before an architecture of its name.
    random_weights = settings.model in ARCHITECTURES and not Path(settings.model).is_dir()
    # The class of a video pipeline says another size than a tiny one of its kind can do.
    own = ARCHITECTURES[settings.model].size if random_weights else default_size(pipe)
    sizes = settings.sizes or (own,)
    made = provenance(settings.seed)
    for mode in settings.modes:
        if mode in GRAPHS:
            from DeepCache.export.formats import graph_format
            from DeepCache.export.identity import versions_of

            made["versions"] |= versions_of(graph_format(mode).packages)
    grid = product(settings.dtypes, settings.modes, sizes, settings.batches, settings.scopes)
    return {
        "format": BENCHMARK_FORMAT,
        **made,
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


def _title(cell: dict[str, Any]) -> str:
    scope = {"pipeline": "whole pipeline", "unet": "U-Net alone"}[cell["scope"]]
    return f"{cell['width']}×{cell['height']}, batch {cell['batch']}, {cell['dtype']}, {cell['mode']}, {scope}"


def _expected_work(settings: BenchmarkSettings, cell: dict[str, Any]) -> float:
    """In pixels of the runs without caching, roughly."""
    contestants = 1 + 0.4 * len(settings.variants) * (1 + settings.fewer_steps + (settings.reference is not None))
    done = len(cell["rows"][0]["seconds"]) if cell["rows"] else 0
    rounds = settings.warm_up + settings.rounds - done
    return float(contestants * rounds * cell["width"] * cell["height"] * cell["batch"])


@dataclass
class _Stop:
    """When to begin no further round."""

    after: float | None
    begin: float = field(default_factory=monotonic)
    any_round: bool = False

    def due(self, next_round: float = 0.0) -> bool:
        """Whether to stop now, rather than begin a round that takes so many seconds. One round is always measured, so
        that a run that is repeated comes to its end."""
        return self.after is not None and self.any_round and monotonic() - self.begin + next_round > self.after


@dataclass
class _Cell:
    """Measures what is missing of a cell."""

    settings: BenchmarkSettings
    pipe: Any
    cell: dict[str, Any]
    save: Callable[[], None]
    work: Work
    stop: _Stop
    on_graphs: dict[int, Any] = field(default_factory=dict)
    """The pipeline with graphs in another runtime, by the branch at which they are cut."""
    shares: dict[tuple[str, str], float] = field(default_factory=dict)
    """Multiply-accumulates, by method and name of the variant, as a share of those without caching."""

    def measure(self) -> None:
        torch.compiler.reset()
        release_memory()
        contestants: list[Contestant] = []
        try:
            contestants.extend(self._contestants())
            self._rounds(contestants)
        # Of those that run beside it, `_run` takes care.
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.cell |= {"status": OUT_OF_MEMORY, "reason": _first_line(error)}

    def _contestants(self) -> Iterator[Contestant]:
        cell, settings = self.cell, self.settings
        size = (cell["width"], cell["height"])
        call = PipelineCall(cell["batch"], size, settings.steps, _guidance(settings, self.pipe), settings.seed)
        make = partial(
            self._contestant,
            unet_only=cell["scope"] == "unet",
            mode=cell["mode"],
            reference=settings.reference,
        )
        baseline = make(BASELINE, call)
        yield baseline
        cached = {variant: make(DEEPCACHE, call, variant) for variant in settings.variants}
        yield from cached.values()
        # The reference package wraps layers, which graphs have none of.
        if settings.reference is not None and cell["mode"] not in GRAPHS:
            for variant in settings.variants:
                if variant.in_reference:
                    yield make(REFERENCE, call, variant)
        costs = self._costs(baseline.loop)
        cell |= {"unet_calls": baseline.loop.calls, "full_gmacs": round(costs.full / 1e9, 3)}
        calls = baseline.loop.calls
        for variant in settings.variants:
            expected = mean_cost(variant.config.steps(calls), costs)
            self.shares[DEEPCACHE, variant.name] = _share(cached[variant]) if variant.adaptive else expected
            if variant.in_reference:
                self.shares[REFERENCE, variant.name] = mean_cost(_reference_steps(variant, baseline.loop), costs)
        if settings.fewer_steps:
            shares = [self.shares[DEEPCACHE, variant.name] for variant in settings.variants]
            fewer = {max(1, round(settings.steps * share)) for share in shares}
            for steps in sorted(fewer - {settings.steps}, reverse=True):
                yield make(FEWER_STEPS, replace(call, steps=steps), unets_like=baseline)

    def _contestant(
        self, method: str, call: PipelineCall, variant: Variant | None = None, **options: Any
    ) -> Contestant:
        mode = self.cell["mode"]
        if mode not in GRAPHS:
            return Contestant(self.pipe, method, call, variant, **options)
        branch = 0 if variant is None else branch_for(variant.config)
        if branch not in self.on_graphs:
            # All contestants with a cut at this branch share the graphs, which hold the weights.
            from DeepCache.export import use_runtime

            self.on_graphs[branch] = copy.copy(self.pipe)
            config = DeepCacheConfig() if variant is None else variant.config
            use_runtime(self.on_graphs[branch], mode, config)
        return Contestant(self.on_graphs[branch], method, call, variant, **options)

    def _costs(self, loop: UnetLoop) -> Costs:
        unet = next(iter(unets_of(self.pipe).values()))
        numbers = sorted({number for variant in self.settings.variants for number in variant.config.branches})
        return count_costs(unet, loop.args, loop.kwargs, [branch_of(unet, number) for number in numbers])

    def _rounds(self, contestants: list[Contestant]) -> None:
        cell, settings = self.cell, self.settings
        if not cell["rows"]:
            calls = contestants[0].loop.calls
            cell["rows"] = [_row(contestant, calls, self.shares) for contestant in contestants]
        # They are always made in the same order.
        entries = list(zip(contestants, cell["rows"], strict=True))
        done = len(cell["rows"][0]["seconds"])
        longest = 0.0
        round_of_work = _expected_work(settings, cell) / max(1, settings.warm_up + settings.rounds - done)
        for number in range(done - settings.warm_up, settings.rounds):
            if self.stop.due(longest):
                return
            begin = monotonic()
            turn = number % len(entries)
            measured = [(row, self._run(one, row)) for one, row in [*entries[turn:], *entries[:turn]]]
            if number >= done or cell["mode"] == "eager":
                # What compiles while it warms up tells nothing of the rounds to come.
                longest = max(longest, monotonic() - begin)
            self.work.add(round_of_work)
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

    def _run(self, one: Contestant, row: dict[str, Any]) -> Timing | None:
        """Times one run; None where it fails, now or before."""
        if row["error"]:
            return None
        try:
            timing = timed(one.run, one.device)
            row["bytes_kept"] = one.release()
        # Whatever another package raises is told, and those who run beside it go on.
        except Exception as error:
            if one.method == BASELINE:
                raise
            row["error"] = OUT_OF_MEMORY if is_out_of_memory(error) else _first_line(error)
            one.release()
            release_memory()
            return None
        if row["first_seconds"] is None:
            row["first_seconds"] = round(timing.seconds, 6)
        if row["pattern"] is None and (stats := one.stats) is not None:
            # What was done, where that is more than one U-Net call a step.
            row |= {"pattern": stats.pattern, "mac_share": stats.mac_share}
        return timing


def _share(contestant: Contestant) -> float:
    """What a run costs that decides on its way, found by running it."""
    contestant.run()
    stats = contestant.stats
    contestant.release()
    if stats is None or stats.mac_share is None:
        raise ValueError("the cost of this model's steps cannot be counted, which an adaptive schedule takes")
    return stats.mac_share


def _reference_steps(variant: Variant, loop: UnetLoop) -> Iterator[Step]:
    """What the reference package does at each step: it looks the timestep up by its value, and finds the first one
    where a scheduler has it several times."""
    values = loop.timesteps.tolist()
    places = [values.index(value) for value in values[loop.first :]]
    for place in places:
        yield Step((place - places[0]) % variant.config.cache_interval == 0, variant.config.cache_branch_id)


def _row(contestant: Contestant, calls: int, shares: dict[tuple[str, str], float]) -> dict[str, Any]:
    """A row of a cell before it is measured."""
    variant, steps = contestant.variant, contestant.call.steps
    whole = contestant.method in (BASELINE, FEWER_STEPS)
    return {
        "method": contestant.method,
        "variant": variant.name if variant is not None else f"{steps} steps",
        "steps": steps,
        "pattern": "F" * contestant.loop.calls if whole else None,
        "mac_share": contestant.loop.calls / calls if variant is None else shares[contestant.method, variant.name],
        "seconds": [],
        "first_seconds": None,
        "median": None,
        "spread": None,
        "speed_up": None,
        "speed_up_spread": None,
        "limit": None,
        "share_of_limit": None,
        "bytes_kept": None,
        "peak_memory": None,
        "error": "",
    }


def _summarise(row: dict[str, Any], baseline: dict[str, Any]) -> None:
    """Works out the figures of a row from its raw timings and those of the pipeline without caching."""
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
