"""Tunes a plan: measures the model, searches a schedule, and checks it on prompts it never saw."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.attach import remove_deepcache
from DeepCache.engine.branches import SkipBranch
from DeepCache.engine.cost import Costs, count_costs
from DeepCache.engine.fingerprint import fingerprint, scheduler_settings
from DeepCache.engine.unet_cache import branch_of
from DeepCache.engine.unets import unets_of
from DeepCache.generation.painter import Painter
from DeepCache.plan import Plan
from DeepCache.progress import Work, WorkProgress
from DeepCache.schedule import FORECASTS, StepSchedule, check_integer, mean_cost
from DeepCache.tune.best_schedules import best_schedules, predicted_error
from DeepCache.tune.evaluation import Evaluations, Measured
from DeepCache.tune.neighbours import neighbours
from DeepCache.tune.recording import record
from DeepCache.tune.search import Goal, search
from DeepCache.tune.segment_errors import SegmentErrors, gaps_measured, longest_segment, steps_of_sensitivity

__all__ = ["TuningSettings", "tune"]

INTERVALS = (2, 3, 4, 5, 6, 8, 10)
FEWER = (0.6, 0.45, 0.35, 0.25)
# From far more than any error to far less, relative to the error of a uniform schedule.
_PRICES = [10 ** (exponent / 6) for exponent in range(-24, 25)]

# What the frontier gives in dB for cost, where cost is the whole of a run; only the order of attempts depends on it.
_GOING_RATE = 100.0


@dataclass(frozen=True)
class TuningSettings:
    """What to tune for and on.

    Args:
        prompts (`tuple` of `str`):
            Prompts that the search draws.
        held_out (`tuple` of `str`):
            Prompts on which the winner is checked at the end; none of `prompts`.
        steps (`int`):
            Denoising steps.
        goal (`Goal`):
            What is wanted.
        model (`str`):
            The name that the model was loaded by, for the record.
        guidance (`float`, *optional*):
            The guidance scale; the pipeline's own by default.
        seed (`int`, defaults to `0`):
            Seed of the first prompt; each further one has the next number.
        batch (`int`, defaults to `8`):
            Prompts in one pipeline call.
        evaluations (`int`, defaults to `40`):
            Schedules that the search draws at most, beyond those it starts from.
        branches (`tuple` of `int`, defaults to `(0,)`):
            Skip branches that shallow steps may use; the first is the one that everything starts from.

    Raises:
        ValueError: a value is out of its range.
    """

    prompts: tuple[str, ...]
    held_out: tuple[str, ...]
    steps: int
    goal: Goal
    model: str = "shapes"
    guidance: float | None = None
    seed: int = 0
    batch: int = 8
    evaluations: int = 40
    branches: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if not self.prompts or not self.held_out:
            raise ValueError(
                f"tuning takes prompts to tune on and others to check on, got {len(self.prompts)} and "
                f"{len(self.held_out)}"
            )
        both = set(self.prompts) & set(self.held_out)
        if both:
            raise ValueError(f"the prompt {both.pop()!r} is among those to tune on and those to check on")
        for name, least in (("steps", 4), ("batch", 1), ("evaluations", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if not self.branches:
            raise ValueError("branches must name one skip branch or more, got none")
        for branch in self.branches:
            check_integer("each of the branches", branch, minimum=0)


def tune(
    pipe: Any,
    settings: TuningSettings,
    folder: str | Path,
    on_progress: Callable[[WorkProgress], None] = lambda progress: None,
) -> Plan:
    """Tunes a plan for a pipeline with the scheduler that it has.

    What is measured on the way is kept in the folder, so that a tuning that was stopped goes on where it was, and one
    for another goal starts from what is known.

    1. Measures how wrong every segment of a schedule would be (`segment_errors`).
    2. Draws uniform schedules, and fewer steps, for comparison.
    3. Puts segments together to the best schedules by a dynamic programme (`best_schedules`).
    4. Goes on from there by single decisions on the true error (`search`).
    5. Checks the winner on the held-out prompts.

    Args:
        pipe: a text-to-image pipeline with one U-Net. Any DeepCache that is on it is taken off.
        settings: what to tune for and on.
        folder: where to keep what was measured; it is made where it does not exist.
        on_progress: called as the work goes on.

    Raises:
        TypeError: the pipeline has no U-Net that DeepCache can cut.
        ValueError: the goal cannot be reached, or the folder is that of another tuning.

    Example:
        >>> from DeepCache.models import load_pipeline
        >>> from DeepCache.tune import Goal, TuningSettings, tune
        >>> pipe = load_pipeline("shapes")
        >>> settings = TuningSettings(("a red circle",), ("a blue star",), steps=4, goal=Goal(cost=0.7), evaluations=0)
        >>> plan = tune(pipe, settings, "deepcache-tuning")
        >>> plan.results["tuning"]["measured"]["cost"] <= 0.7
        True
    """
    if len(unets_of(pipe)) > 1:
        raise ValueError(f"a {type(pipe).__name__} has several U-Nets; a plan is for one")
    remove_deepcache(pipe)
    pipe.set_progress_bar_config(disable=True)
    unet = next(iter(unets_of(pipe).values()))
    branches = [branch_of(unet, number) for number in settings.branches]
    branch = branches[0]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_folder(folder, _identity(pipe, settings))
    painter = _painter(pipe, settings, settings.prompts)
    work = Work(_expected_work(settings), on_progress)
    bench = Evaluations(painter, folder / "evaluations.jsonl", "tuning", work.add)

    segments, costs, calls, guided = _segments(painter, branches, bench, folder, work)
    work.begin("uniform schedules and fewer steps")
    uniform = {name: (schedule, bench.schedule(schedule)) for name, schedule in _uniform(calls, branch, guided)}
    fewer = {steps: bench.fewer_steps(steps) for steps in _fewer(settings.steps)}

    scale = _scale(segments, calls, branch)
    found = best_schedules((segments / scale).mean(-1), branch.number, costs.share(branch.number), _PRICES)
    start = [each.schedule for each in _near(found, settings.goal, segments)]
    start += [schedule for schedule, measured in uniform.values() if settings.goal.met_by(measured.cost, measured.psnr)]
    if not start:
        least = min(each.cost for each in found)
        raise ValueError(f"no schedule of {calls} steps meets the goal {settings.goal}: the cheapest costs {least:.3f}")
    work.begin("search")
    winner, measured = search(
        start,
        settings.goal,
        bench.schedule,
        lambda schedule: neighbours(schedule, settings.branches, guided),
        _promise(settings.goal, segments / scale, costs),
        settings.evaluations,
    )
    if not settings.goal.met_by(measured.cost, measured.psnr):
        raise ValueError(
            f"no schedule was found that meets the goal {settings.goal}; the nearest costs {measured.cost:.3f} at "
            f"{measured.psnr:.1f} dB"
        )

    work.begin("prompts it never saw")
    check = Evaluations(
        _painter(pipe, settings, settings.held_out),
        folder / "evaluations.jsonl",
        "held out",
        lambda share: work.add(share * len(settings.held_out) / len(settings.prompts)),
    )
    held_out = check.schedule(winner)
    rival = _rival(uniform, measured)
    like_cost = max(1, round(settings.steps * measured.cost))
    predicted = {"cost": mean_cost(winner.each, costs), "psnr": _predicted_psnr(segments, winner)}
    results: dict[str, Any] = {
        "tuning": {"predicted": predicted, "measured": asdict(measured), "seconds_without": bench.seconds_of_reference},
        "held_out": {
            "predicted": predicted,
            "measured": asdict(held_out),
            "seconds_without": check.seconds_of_reference,
            "fewer_steps": {"steps": like_cost, **asdict(check.fewer_steps(like_cost))},
        },
        "frontier": {
            "uniform": [{"name": name} | asdict(result) for name, (_, result) in uniform.items()],
            "fewer_steps": [{"steps": steps} | asdict(result) for steps, result in fewer.items()],
            "tuned": _tuned(found, bench, winner, measured),
        },
    }
    if rival is not None:
        results["held_out"]["uniform"] = {"name": rival, **asdict(check.schedule(uniform[rival][0]))}
    work.end()
    return Plan(
        winner,
        fingerprint(unet),
        scheduler_settings(pipe.scheduler),
        {"goal": asdict(settings.goal), "evaluations": settings.evaluations} | _conditions(pipe, settings),
        results,
    )


def _painter(pipe: Any, settings: TuningSettings, prompts: Sequence[str]) -> Painter:
    # The held-out prompts have other seeds too.
    seed = settings.seed + (0 if prompts is settings.prompts else len(settings.prompts))
    return Painter(pipe, prompts, settings.steps, settings.guidance, seed, settings.batch)


def _identity(pipe: Any, settings: TuningSettings) -> dict[str, Any]:
    """All that what is measured depends on."""
    return _conditions(pipe, settings) | {
        "scheduler": scheduler_settings(pipe.scheduler),
        "unet": fingerprint(next(iter(unets_of(pipe).values()))),
    }


def _conditions(pipe: Any, settings: TuningSettings) -> dict[str, Any]:
    values = asdict(settings)
    for name in ("goal", "evaluations"):
        del values[name]
    return values | {
        "prompts": list(settings.prompts),
        "held_out": list(settings.held_out),
        "branches": list(settings.branches),
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "versions": {name: version(name) for name in ("DeepCache", "diffusers", "torch")},
    }


def _check_folder(folder: Path, identity: dict[str, Any]) -> None:
    path = folder / "settings.json"
    if not path.is_file():
        unfinished = path.with_suffix(".partial")
        unfinished.write_text(json.dumps(identity, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        unfinished.replace(path)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(identity))
    other = [name for name in now if before.get(name) != now[name]]
    if other:
        raise ValueError(
            f"{str(folder)!r} holds what was measured with another {', '.join(other)}; give another folder, or delete "
            "this one"
        )


def _expected_work(settings: TuningSettings) -> float:
    """In drawings of the tuning prompts without DeepCache, with a shallow step at a tenth of a full one."""
    steps = settings.steps
    longest = longest_segment(steps)
    segments = steps * (len(gaps_measured(steps)) + 1) * longest * 0.1 / steps
    sensitivity = sum(steps - step for step in steps_of_sensitivity(steps)) / steps
    uniform = sum(4 * (1 / interval + 0.1) for interval in INTERVALS if interval <= steps // 2)
    cost = settings.goal.cost if settings.goal.cost is not None else 0.35
    held_out = len(settings.held_out) / len(settings.prompts) * (1 + 3 * cost)
    return 1 + segments + sensitivity + uniform + sum(FEWER) + (settings.evaluations + 6) * cost + held_out


def _segments(
    painter: Painter, branches: Sequence[SkipBranch], bench: Evaluations, folder: Path, work: Work
) -> tuple[torch.Tensor, Costs, int, bool]:
    """The errors of all segments, the costs of steps, the number of U-Net calls and whether they are guided."""
    unet, branch = painter.pipe.unet, branches[0]
    errors, images = [], []
    seconds = 0.0
    for first in painter.batches:
        path = folder / f"segments-{first:04d}.safetensors"
        work.begin("what happens without DeepCache")
        start = perf_counter()
        recording = record(painter, first, branch)
        seconds += perf_counter() - start
        share = len(recording.images) / len(painter.prompts)
        work.add(share)
        images.append(recording.images)
        steps = len(recording.calls)
        args, kwargs = recording.calls[0]
        if first == 0:
            costs = count_costs(unet, args, kwargs, branches)
            if steps < 4:
                raise ValueError(f"a run of {steps} U-Net calls is too short to tune")
        if path.is_file():
            errors.append(load_file(path)["errors"])
            continue
        work.begin("how wrong each step would be")
        # Pipelines keep the scale that they were called with.
        guidance = float(painter.pipe.guidance_scale) if recording.guided else 1.0
        shallow = costs.share(branch.number) * share / steps
        measuring = SegmentErrors(painter, first, recording, branch, guidance, partial(work.add, shallow))
        sensitivity = measuring.sensitivity()
        work.add(share * sum(steps - step for step in steps_of_sensitivity(steps)) / steps)
        errors.append(measuring.measure(sensitivity))
        unfinished = path.with_suffix(".partial")
        save_file({"errors": errors[-1]}, unfinished)
        unfinished.replace(path)
    bench.set_reference(torch.cat(images), seconds)
    return torch.cat(errors, dim=-1), costs, steps, recording.guided


def _uniform(calls: int, branch: SkipBranch, guided: bool) -> Iterator[tuple[str, StepSchedule]]:
    for interval in INTERVALS:
        if interval > calls // 2:
            return
        for forecast in FORECASTS:
            for reuse in (False, True) if guided and forecast == "linear" else (False,):
                config = DeepCacheConfig(interval, branch.number, forecast=forecast, guidance_reuse=reuse)
                name = f"interval {interval}, {forecast}" + (", guidance reuse" if reuse else "")
                yield name, StepSchedule(config.steps(calls))


def _fewer(steps: int) -> list[int]:
    return sorted({max(1, round(steps * share)) for share in FEWER}, reverse=True)


def _scale(segments: torch.Tensor, calls: int, branch: SkipBranch) -> torch.Tensor:
    """What each prompt's errors are divided by, so that all count alike: the error of a uniform schedule."""
    uniform = StepSchedule(DeepCacheConfig(3, branch.number, forecast="linear").steps(calls))
    errors = [predicted_error(segments[..., prompt], uniform) for prompt in range(segments.shape[-1])]
    return torch.tensor([error or 1.0 for error in errors], dtype=segments.dtype)


def _predicted_psnr(segments: torch.Tensor, schedule: StepSchedule) -> float | None:
    """The mean over the prompts; None where a segment was not measured."""
    errors = [predicted_error(segments[..., prompt], schedule) for prompt in range(segments.shape[-1])]
    if any(error is None or not 0 < error < math.inf for error in errors):
        return None
    return fmean(-10 * math.log10(error) for error in errors if error)


def _near(found: Sequence[Any], goal: Goal, segments: torch.Tensor) -> list[Any]:
    """The few schedules of the dynamic programme that come nearest to the goal."""
    if goal.cost is not None:
        return [each for each in found if each.cost <= goal.cost + 1e-9][-3:]
    assert goal.psnr is not None
    good = [each for each in found if (_predicted_psnr(segments, each.schedule) or math.inf) >= goal.psnr]
    # Predictions err by a decibel or two, to either side.
    position = found.index(good[0]) if good else len(found) - 1
    return list(found[max(0, position - 1) : position + 4])


def _promise(goal: Goal, segments: torch.Tensor, costs: Costs) -> Callable[[StepSchedule, StepSchedule], float]:
    """How much is expected of a neighbour: what it gains in predicted fidelity, and in cost at the going rate."""
    errors = segments.mean(-1)

    def decibels(schedule: StepSchedule) -> float:
        error = predicted_error(errors, schedule)
        return -10 * math.log10(error) if error is not None and 0 < error < math.inf else math.nan

    def promise(current: StepSchedule, candidate: StepSchedule) -> float:
        cost = mean_cost(candidate.each, costs)
        gained = decibels(candidate) - decibels(current)
        # Nothing is known of what the segments do not tell: a quadratic forecast, another branch.
        gained = 0.0 if math.isnan(gained) else gained
        if goal.cost is not None:
            return -math.inf if cost > goal.cost + 1e-9 else gained
        saved = mean_cost(current.each, costs) - cost
        return -math.inf if saved < 0 else gained + _GOING_RATE * saved

    return promise


def _rival(uniform: dict[str, tuple[StepSchedule, Measured]], winner: Measured) -> str | None:
    """The best uniform schedule that costs no more than the winner."""
    affordable = {name: measured for name, (_, measured) in uniform.items() if measured.cost <= winner.cost + 1e-9}
    return max(affordable, key=lambda name: affordable[name].psnr, default=None)


def _tuned(found: Sequence[Any], bench: Evaluations, winner: StepSchedule, measured: Measured) -> list[dict[str, Any]]:
    """What was drawn of the schedules of the dynamic programme, and the winner last."""
    drawn = [bench.schedule(each.schedule) for each in found if bench.known(each.schedule)]
    return [asdict(each) for each in [*drawn, measured]]
