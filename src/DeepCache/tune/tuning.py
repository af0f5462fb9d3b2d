"""Tunes a plan: measures the model, searches a schedule, and checks it on held-out prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import load_file, save

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.attach import remove_deepcache
from DeepCache.engine.cost import Costs
from DeepCache.engine.fingerprint import fingerprint, guidance_scale, scheduler_settings
from DeepCache.engine.layouts import SkipBranch, branch_of
from DeepCache.engine.unets import unets_of
from DeepCache.files import read_json_text, write_atomically
from DeepCache.generation.painter import Painter
from DeepCache.plan import Plan
from DeepCache.progress import Work, WorkProgress
from DeepCache.schedule import ForecastRule, StepSchedule, mean_cost
from DeepCache.tune.best_schedules import best_schedules, predicted_error
from DeepCache.tune.evaluation import Evaluations, MeanEvaluations, Measured
from DeepCache.tune.least_cost import check_goal
from DeepCache.tune.neighbours import neighbours
from DeepCache.tune.recording import record
from DeepCache.tune.search import Goal, search
from DeepCache.tune.segment_errors import (
    SegmentErrors,
    gaps_measured,
    longest_segment,
    skipped_forecast,
    steps_of_sensitivity,
)
from DeepCache.tune.settings import TuningSettings
from DeepCache.tune.starts import kinds_of_steps, measure_uniform, skipped_twins, spread_to_the_goal

__all__ = ["tune"]

FEWER = (0.6, 0.45, 0.35, 0.25)
# From far more than any error to far less, relative to the error of a uniform schedule.
_PRICES = [10 ** (exponent / 6) for exponent in range(-24, 25)]

# What the frontier gives in dB for cost, where cost is the whole of a run; only the order of attempts depends on it.
_GOING_RATE = 100.0


def tune(
    pipe: Any,
    settings: TuningSettings,
    folder: str | Path,
    on_progress: Callable[[WorkProgress], None] = lambda progress: None,
) -> Plan:
    """Tunes a plan for a pipeline with the scheduler that it has.

    What is measured on the way is kept in the folder, so that a tuning that was stopped resumes, and one for another
    goal starts from what is known.

    1. Counts what a schedule can cost at least (`least_cost`), and refuses a goal below that.
    2. Measures how wrong every segment of a schedule would be (`segment_errors`).
    3. Generates with uniform schedules of shallow and of skipped steps (`starts`), and with fewer steps.
    4. Puts segments together to the best schedules by a dynamic programme (`best_schedules`).
    5. Continues from the best of all these by single decisions on the true error (`search`).
    6. Checks the winner on the held-out prompts.

    All of it happens at each guidance scale, and the means over all prompts at all scales decide.

    Args:
        pipe: a text-to-image pipeline with one U-Net. Any DeepCache that is on it is taken off.
        settings: what to tune for and on.
        folder: where to keep what was measured; it is made where it does not exist.
        on_progress: called as the work goes on.

    Raises:
        TypeError: the pipeline has no U-Net that DeepCache can cut.
        ValueError: the goal cannot be reached, or the folder is that of another tuning. A cost goal that no schedule
            can reach is refused before anything is generated.

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
    costs = check_goal(pipe, settings, branches)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_folder(folder, _identity(pipe, settings))
    work = Work(_expected_work(settings), on_progress)
    bench = _bench(pipe, settings, settings.prompts, folder, work)

    measured_scales = [_measure(each, branch, costs, folder, work) for each in bench.each]
    segments = torch.cat([each.errors for each in measured_scales], dim=-1)
    guidances = [each.guidance for each in measured_scales]
    guided = all(each.guided for each in measured_scales)
    calls = measured_scales[0].calls
    skipped = [name for name in measured_scales[0].skipped if all(name in each.skipped for each in measured_scales)]
    kinds = kinds_of_steps(branch.number, guided, skipped)
    goal = settings.goal
    work.begin("uniform schedules and fewer steps")
    uniform = measure_uniform(kinds, calls, goal, costs, bench.schedule)
    fewer = {steps: bench.fewer_steps(steps) for steps in _fewer(settings.steps)}

    scale = _scale(segments, calls, branch)
    errors = (segments / scale).mean(-1)
    share, forecast = costs.share(branch.number), skipped_forecast(skipped)
    # Errors along the true run are too kind to skipped steps at some guidance scales: both ways are tried.
    of_shallow = best_schedules(errors[..., :2], branch.number, share, _PRICES)
    found = [*of_shallow, *best_schedules(errors, branch.number, share, _PRICES, forecast)]
    start = [schedule for schedule, measured in uniform.values() if goal.met_by(measured.cost, measured.psnr)]
    for expected in (of_shallow, found[len(of_shallow) :], skipped_twins(of_shallow, skipped)):
        start += [each.schedule for each in _near(expected, goal, segments)]
    work.begin("search")
    start += spread_to_the_goal(kinds, uniform, calls, goal, costs, bench.schedule)
    winner, measured = search(
        start,
        goal,
        bench.schedule,
        lambda schedule: neighbours(schedule, settings.branches, guided, skipped),
        _promise(goal, segments / scale, costs),
        settings.evaluations,
    )
    if not goal.met_by(measured.cost, measured.psnr):
        raise ValueError(
            f"no schedule was found that meets the goal {goal}: the nearest costs {measured.cost:.3f} at "
            f"{measured.psnr:.1f} dB. Ask for what that has; with the same folder ({str(folder)!r}) and otherwise the "
            "same settings the search starts from what was measured."
        )

    work.begin("held-out prompts")
    check = _bench(pipe, settings, settings.held_out, folder, work)
    rival = _rival(uniform, measured)
    predicted = {"cost": mean_cost(winner.each, costs), "psnr": _predicted_psnr(segments, winner)}
    results: dict[str, Any] = {
        "tuning": {
            "predicted": predicted,
            "measured": asdict(measured),
            "scales": [
                {"guidance": guidance, "measured": asdict(each.schedule(winner))}
                for guidance, each in zip(guidances, bench.each, strict=True)
            ],
            "seconds_without": bench.seconds_of_reference,
        },
        "held_out": {
            "predicted": predicted,
            **_compared(check, winner, uniform, rival, settings.steps),
            "scales": [
                {"guidance": guidance, **_compared(each, winner, uniform, rival, settings.steps)}
                for guidance, each in zip(guidances, check.each, strict=True)
            ],
            "seconds_without": check.seconds_of_reference,
        },
        "frontier": {
            "uniform": [{"name": name} | asdict(result) for name, (_, result) in uniform.items()],
            "fewer_steps": [{"steps": steps} | asdict(result) for steps, result in fewer.items()],
            "tuned": _tuned(found, bench, winner, measured),
        },
    }
    work.end()
    known = [guidance for guidance in guidances if guidance is not None]
    return Plan(
        winner,
        fingerprint(unet),
        scheduler_settings(pipe.scheduler),
        {"goal": asdict(goal), "evaluations": settings.evaluations} | _conditions(pipe, settings),
        results,
        (min(known), max(known)) if known else None,
    )


def _bench(pipe: Any, settings: TuningSettings, prompts: Sequence[str], folder: Path, work: Work) -> MeanEvaluations:
    """Evaluations of the prompts at every guidance scale."""
    held_out = prompts is not settings.prompts
    # The held-out prompts have other seeds too.
    seed = settings.seed + (len(settings.prompts) if held_out else 0)
    share = len(prompts) / len(settings.prompts)
    return MeanEvaluations(
        [
            Evaluations(
                Painter(pipe, prompts, settings.steps, guidance, seed, settings.batch),
                folder / "evaluations.jsonl",
                "held out" if held_out else "tuning",
                lambda done: work.add(done * share),
            )
            for guidance in settings.scales
        ]
    )


def _compared(
    evaluations: Evaluations | MeanEvaluations,
    winner: StepSchedule,
    uniform: dict[str, tuple[StepSchedule, Measured]],
    rival: str | None,
    steps: int,
) -> dict[str, Any]:
    """The winner, fewer steps at a like cost and the best uniform schedule that costs no more."""
    measured = evaluations.schedule(winner)
    fewer = max(1, round(steps * measured.cost))
    found: dict[str, Any] = {
        "measured": asdict(measured),
        "fewer_steps": {"steps": fewer, **asdict(evaluations.fewer_steps(fewer))},
    }
    if rival is not None:
        found["uniform"] = {"name": rival, **asdict(evaluations.schedule(uniform[rival][0]))}
    return found


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
        "guidances": list(settings.guidances),
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "versions": {name: version(name) for name in ("DeepCache", "diffusers", "torch")},
    }


def _check_folder(folder: Path, identity: dict[str, Any]) -> None:
    path = folder / "settings.json"
    if not path.is_file():
        write_atomically(path, json.dumps(identity, indent=2, ensure_ascii=False) + "\n")
        return
    try:
        before = json.loads(read_json_text(path, "settings of a tuning"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}. Give another folder (--work), or delete it.") from error
    now = json.loads(json.dumps(identity))
    other = [name for name in now if before.get(name) != now[name]]
    if other:
        raise ValueError(
            f"{str(folder)!r} was measured with different settings ({', '.join(other)}). Give another folder (--work), "
            "or delete this one."
        )


def _expected_work(settings: TuningSettings) -> float:
    """In runs of the tuning prompts without DeepCache at one guidance scale, with a shallow step at a tenth of a full
    one."""
    steps = settings.steps
    longest = longest_segment(steps)
    segments = steps * (len(gaps_measured(steps)) + 1) * longest * 0.1 / steps
    sensitivity = sum(steps - step for step in steps_of_sensitivity(steps)) / steps
    cost = settings.goal.cost if settings.goal.cost is not None else 0.35
    uniform = (20 if settings.goal.cost is not None else 35) * 0.8 * cost
    held_out = len(settings.held_out) / len(settings.prompts) * (1 + 3 * cost)
    each = 1 + segments + sensitivity + uniform + sum(FEWER) + (settings.evaluations + 12) * cost + held_out
    return each * len(settings.scales)


@dataclass(frozen=True)
class _Scale:
    """What is measured at one guidance scale: the errors of all segments, the guidance scale that the pipeline takes it
    for, whether batches are guided, the forecasts that skipped steps may take, and how many U-Net calls a run has."""

    errors: torch.Tensor
    guidance: float | None
    guided: bool
    skipped: tuple[ForecastRule, ...]
    calls: int


def _measure(bench: Evaluations, branch: SkipBranch, costs: Costs, folder: Path, work: Work) -> _Scale:
    painter = bench.painter
    name = "segments" if painter.guidance is None else f"segments-{painter.guidance}"
    errors, images = [], []
    seconds = 0.0
    for first in painter.batches:
        path = folder / f"{name}-{first:04d}.safetensors"
        work.begin("what happens without DeepCache")
        start = perf_counter()
        recording = record(painter, first, branch)
        seconds += perf_counter() - start
        share = len(recording.images) / len(painter.prompts)
        work.add(share)
        images.append(recording.images)
        steps = len(recording.calls)
        # Pipelines keep the scale that they were called with.
        guidance = guidance_scale(painter.pipe)
        if path.is_file():
            errors.append(load_file(path)["errors"])
            continue
        work.begin("how wrong each step would be")
        shallow = costs.share(branch.number) * share / steps
        applied = guidance if recording.guided and guidance is not None else 1.0
        measuring = SegmentErrors(painter, first, recording, branch, applied, partial(work.add, shallow))
        sensitivity = measuring.sensitivity()
        work.add(share * sum(steps - step for step in steps_of_sensitivity(steps)) / steps)
        errors.append(measuring.measure(sensitivity))
        write_atomically(path, save({"errors": errors[-1]}))
    bench.set_reference(torch.cat(images), seconds)
    return _Scale(
        torch.cat(errors, dim=-1),
        painter.guidance if guidance is None else guidance,
        recording.guided,
        recording.skipped,
        steps,
    )


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
        return [each for each in found if each.cost <= goal.cost + 1e-9][-2:]
    assert goal.psnr is not None
    good = [each for each in found if (_predicted_psnr(segments, each.schedule) or math.inf) >= goal.psnr]
    # Predictions err by a decibel or two, to either side.
    position = found.index(good[0]) if good else len(found) - 1
    return list(found[max(0, position - 1) : position + 2])


def _promise(goal: Goal, segments: torch.Tensor, costs: Costs) -> Callable[[StepSchedule, StepSchedule], float]:
    """How much is expected of a neighbour: what it gains in predicted fidelity, and in cost at the going rate."""
    errors = segments.mean(-1)

    def decibels(schedule: StepSchedule) -> float:
        error = predicted_error(errors, schedule)
        return -10 * math.log10(error) if error is not None and 0 < error < math.inf else math.nan

    def promise(current: StepSchedule, candidate: StepSchedule) -> float:
        cost = mean_cost(candidate.each, costs)
        gained = decibels(candidate) - decibels(current)
        # Nothing is known of what the segments do not tell: another branch, or long segments.
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


def _tuned(
    found: Sequence[Any], bench: MeanEvaluations, winner: StepSchedule, measured: Measured
) -> list[dict[str, Any]]:
    """What was drawn of the schedules of the dynamic programme, and the winner last."""
    drawn = [bench.schedule(each.schedule) for each in found if bench.known(each.schedule)]
    return [asdict(each) for each in [*drawn, measured]]
