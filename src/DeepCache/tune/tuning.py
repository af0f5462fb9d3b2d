"""Tunes a plan: measures the model, searches for a schedule, and checks it on held-out prompts."""

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
from safetensors.torch import load_file, save_file

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.attach import remove_deepcache
from DeepCache.engine.cost import Costs, capture_unet_call, count_costs
from DeepCache.engine.fingerprint import fingerprint, guidance_scale, scheduler_settings
from DeepCache.engine.layouts import SkipBranch, branch_of
from DeepCache.engine.unets import unets_of
from DeepCache.files import read_json_text, write_atomically
from DeepCache.generation.batch_sampler import BatchSampler
from DeepCache.generation.pipeline_call import pipeline_call
from DeepCache.plan import Plan
from DeepCache.progress import Work, WorkProgress
from DeepCache.schedule import ForecastRule, StepSchedule, mean_cost
from DeepCache.tune.best_schedules import ExpectedSchedule, best_schedules, predicted_error
from DeepCache.tune.evaluation import Evaluations, MeanEvaluations
from DeepCache.tune.search import neighbours, search
from DeepCache.tune.segment_errors import (
    SegmentErrors,
    gaps_measured,
    longest_segment,
    reads_attention,
    record,
    skipped_forecast,
    steps_of_sensitivity,
)
from DeepCache.tune.settings import Goal, TuningSettings
from DeepCache.tune.starts import Uniform, kinds_of_steps, measure_uniform, skipped_twins, spread_to_the_goal

__all__ = ["check_goal", "tune"]

_FEWER = (0.6, 0.45, 0.35, 0.25)
# From far more than any error to far less, relative to the error of a uniform schedule.
_PRICES = [10 ** (exponent / 6) for exponent in range(-24, 25)]

# The gain in dB that the cost of a whole run buys along a frontier. Only the order of attempts depends on it.
_GOING_RATE = 100.0

# With three calls there is nothing to choose.
_FEWEST_CALLS = 4


def tune(
    pipe: Any,
    settings: TuningSettings,
    folder: str | Path,
    on_progress: Callable[[WorkProgress], None] = lambda progress: None,
) -> Plan:
    """Tunes a plan for a pipeline with its scheduler.

    All measurements are kept in the folder, so a stopped tuning resumes, and one for another goal starts from them.

    1. Counts the lowest possible cost of a schedule, and refuses a goal below that.
    2. Measures the error of every segment of a schedule (`segment_errors`).
    3. Generates with uniform schedules of shallow and of skipped steps (`starts`), and with fewer steps.
    4. Combines segments to the best schedules with a dynamic programme (`best_schedules`).
    5. Continues from the best of all these by single decisions on the true error (`search`).
    6. Checks the result on the held-out prompts.

    All of this is done at each guidance scale, and the means over all prompts at all scales decide.

    Args:
        pipe: a text-to-image pipeline with one U-Net. DeepCache is removed from it.
        settings: the settings.
        folder: the folder for the measurements, which is created if it does not exist.
        on_progress: called during the work.

    Raises:
        TypeError: DeepCache does not support the U-Net of the pipeline.
        ValueError: the goal cannot be met, or the folder is that of another tuning. A cost goal that no schedule can
            meet is refused before anything is generated.

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
    branch, goal = branches[0], settings.goal
    costs = check_goal(pipe, settings, branches)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    conditions = _conditions(pipe, settings)
    scheduler, model = scheduler_settings(pipe.scheduler), fingerprint(unet)
    _check_folder(folder, conditions | {"scheduler": scheduler, "unet": model})
    work = Work(_expected_work(settings), on_progress)

    evaluations = _evaluations(pipe, settings, settings.prompts, folder, work)
    scales = [_measure_scale(each, branch, costs, folder, work) for each in evaluations.each]
    segments = torch.cat([each.errors for each in scales], dim=-1)
    guided = all(each.guided for each in scales)
    calls = scales[0].calls
    skipped = [name for name in scales[0].skipped if all(name in each.skipped for each in scales)]
    kinds = kinds_of_steps(branch.number, guided, skipped)

    work.begin("uniform schedules and fewer steps")
    uniform = measure_uniform(kinds, calls, goal, costs, evaluations.schedule)
    counts = sorted({max(1, round(settings.steps * share)) for share in _FEWER}, reverse=True)
    fewer = [{"steps": steps} | asdict(evaluations.fewer_steps(steps)) for steps in counts]

    relative = segments / _error_of_uniform(segments, calls, branch)
    errors = relative.mean(-1)
    share, forecast = costs.share(branch.number), skipped_forecast(skipped)
    # Errors along the true run underestimate skipped steps at some guidance scales: schedules without them too.
    of_shallow = best_schedules(errors[..., :2], branch.number, share, _PRICES)
    of_all = best_schedules(errors, branch.number, share, _PRICES, forecast)
    start = [schedule for schedule, measured in uniform.values() if goal.met_by(measured.cost, measured.psnr)]
    for expected in (of_shallow, of_all, skipped_twins(of_shallow, skipped)):
        start += [each.schedule for each in _near_the_goal(expected, goal, segments)]

    work.begin("search")
    start += spread_to_the_goal(kinds, uniform, calls, goal, costs, evaluations.schedule)
    winner, measured = search(
        start,
        goal,
        evaluations.schedule,
        lambda schedule: neighbours(schedule, settings.branches, guided, skipped),
        _promise(goal, errors, costs),
        settings.evaluations,
    )
    if not goal.met_by(measured.cost, measured.psnr):
        raise ValueError(
            f"no schedule was found that meets the goal {goal}: the closest costs {measured.cost:.3f} at "
            f"{measured.psnr:.1f} dB. Set that as the goal; with the same folder ({str(folder)!r}) and otherwise the "
            "same settings the search starts from these measurements."
        )

    work.begin("held-out prompts")
    check = _evaluations(pipe, settings, settings.held_out, folder, work)
    affordable = [name for name, (_, each) in uniform.items() if each.cost <= measured.cost + 1e-9]
    rival = max(affordable, key=lambda name: uniform[name][1].psnr, default=None)
    predicted = {"cost": mean_cost(winner.each, costs), "psnr": _predicted_psnr(segments, winner)}
    guidances = [each.guidance for each in scales]
    compare = partial(_comparison, winner=winner, uniform=uniform, rival=rival, steps=settings.steps)
    tuned = [evaluations.schedule(each.schedule) for each in (*of_shallow, *of_all) if evaluations.known(each.schedule)]
    results: dict[str, Any] = {
        "tuning": {
            "predicted": predicted,
            "measured": asdict(measured),
            "scales": [
                {"guidance": guidance, "measured": asdict(each.schedule(winner))}
                for guidance, each in zip(guidances, evaluations.each, strict=True)
            ],
            "seconds_without": evaluations.seconds_of_reference,
        },
        "held_out": {
            "predicted": predicted,
            **compare(check),
            "scales": [
                {"guidance": guidance, **compare(each)} for guidance, each in zip(guidances, check.each, strict=True)
            ],
            "seconds_without": check.seconds_of_reference,
        },
        "frontier": {
            "uniform": [{"name": name} | asdict(result) for name, (_, result) in uniform.items()],
            "fewer_steps": fewer,
            "tuned": [asdict(each) for each in (*tuned, measured)],
        },
    }
    work.end()
    known = [guidance for guidance in guidances if guidance is not None]
    return Plan(
        winner,
        model,
        scheduler,
        {"goal": asdict(goal), "evaluations": settings.evaluations} | conditions,
        results,
        (min(known), max(known)) if known else None,
    )


def check_goal(pipe: Any, settings: TuningSettings, branches: list[SkipBranch]) -> Costs:
    """Counts the costs of a full step and of a shallow one at each branch. The pipeline runs until its first U-Net call
    and nothing is generated.

    Raises:
        ValueError: the run is too short, or the goal is below the cost of the cheapest schedule.
    """
    call = pipeline_call(
        pipe, list(settings.prompts[:1]), settings.seed, steps=settings.steps, guidance=settings.scales[0]
    )
    args, kwargs = capture_unet_call(pipe, pipe.unet, **call)
    cannot_skip = reads_attention(pipe.unet)
    calls = len(pipe.scheduler.timesteps)
    if calls < _FEWEST_CALLS:
        raise ValueError(f"a run must have {_FEWEST_CALLS} U-Net calls or more, got {calls}. Use more steps.")
    _check_least_cost(settings.goal, calls, 0.0)
    costs = count_costs(pipe.unet, args, kwargs, branches)
    if cannot_skip:
        kinds = [step for branch in branches for step in kinds_of_steps(branch.number, True, ()).values()]
        _check_least_cost(settings.goal, calls, min(step.cost(costs) for step in kinds))
    return costs


def _check_least_cost(goal: Goal, calls: int, between: float) -> None:
    """Refuses a cost below that of one full step and the cheapest other steps."""
    least = (1 + (calls - 1) * between) / calls
    if goal.cost is not None and goal.cost < least:
        raise ValueError(
            f"no schedule of {calls} steps meets the goal {goal}: the cheapest, with one full step, costs {least:.3f}, "
            f"a speed-up of {1 / least:.2f}. Set a higher cost, a lower speed-up, or more steps."
        )


def _conditions(pipe: Any, settings: TuningSettings) -> dict[str, Any]:
    """Everything but the model and the scheduler on which the measurements depend."""
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
    """In runs of the tuning prompts without DeepCache at one guidance scale; a shallow step costs a tenth."""
    steps = settings.steps
    segments = (len(gaps_measured(steps)) + 1) * longest_segment(steps) * 0.1
    sensitivity = sum(steps - step for step in steps_of_sensitivity(steps)) / steps
    cost = settings.goal.cost if settings.goal.cost is not None else 0.35
    uniform = (20 if settings.goal.cost is not None else 35) * 0.8 * cost
    held_out = len(settings.held_out) / len(settings.prompts) * (1 + 3 * cost)
    each = 1 + segments + sensitivity + uniform + sum(_FEWER) + (settings.evaluations + 12) * cost + held_out
    return each * len(settings.scales)


def _evaluations(
    pipe: Any, settings: TuningSettings, prompts: Sequence[str], folder: Path, work: Work
) -> MeanEvaluations:
    """Evaluations of the prompts at every guidance scale."""
    held_out = prompts is not settings.prompts
    # The held-out prompts have other seeds too.
    seed = settings.seed + (len(settings.prompts) if held_out else 0)
    share = len(prompts) / len(settings.prompts)
    return MeanEvaluations(
        [
            Evaluations(
                BatchSampler(pipe, prompts, settings.steps, guidance, seed, settings.batch),
                folder / "evaluations.jsonl",
                "held out" if held_out else "tuning",
                lambda done: work.add(done * share),
            )
            for guidance in settings.scales
        ]
    )


@dataclass(frozen=True)
class _Scale:
    """Measurements at one guidance scale: the errors of all segments, the scale that the pipeline uses, whether batches
    are guided, the forecasts that skipped steps can have, and the U-Net calls of a run."""

    errors: torch.Tensor
    guidance: float | None
    guided: bool
    skipped: tuple[ForecastRule, ...]
    calls: int


def _measure_scale(evaluations: Evaluations, branch: SkipBranch, costs: Costs, folder: Path, work: Work) -> _Scale:
    sampler = evaluations.sampler
    name = "segments" if sampler.guidance is None else f"segments-{sampler.guidance}"
    errors, images = [], []
    seconds = 0.0
    for first in sampler.batches:
        path = folder / f"{name}-{first:04d}.safetensors"
        work.begin("recording without DeepCache")
        start = perf_counter()
        recording = record(sampler, first, branch)
        seconds += perf_counter() - start
        share = len(recording.images) / len(sampler.prompts)
        work.add(share)
        images.append(recording.images)
        steps = len(recording.calls)
        # Pipelines keep the scale that they were called with.
        guidance = guidance_scale(sampler.pipe)
        if path.is_file():
            errors.append(load_file(path)["errors"])
            continue
        work.begin("errors of each step")
        shallow = costs.share(branch.number) * share / steps
        applied = guidance if recording.guided and guidance is not None else 1.0
        measuring = SegmentErrors(sampler, first, recording, branch, applied, partial(work.add, shallow))
        sensitivity = measuring.sensitivity()
        work.add(share * sum(steps - step for step in steps_of_sensitivity(steps)) / steps)
        errors.append(measuring.measure(sensitivity))
        unfinished = path.with_suffix(".partial")
        save_file({"errors": errors[-1]}, unfinished)
        unfinished.replace(path)
    evaluations.set_reference(torch.cat(images), seconds)
    return _Scale(
        torch.cat(errors, dim=-1),
        sampler.guidance if guidance is None else guidance,
        recording.guided,
        recording.skipped,
        steps,
    )


def _error_of_uniform(segments: torch.Tensor, calls: int, branch: SkipBranch) -> torch.Tensor:
    """The error of a uniform schedule for each prompt, by which errors are divided to give prompts the same weight."""
    uniform = StepSchedule(DeepCacheConfig(3, branch.number, forecast="linear").steps(calls))
    errors = [predicted_error(segments[..., prompt], uniform) for prompt in range(segments.shape[-1])]
    return torch.tensor([error or 1.0 for error in errors], dtype=segments.dtype)


def _predicted_psnr(segments: torch.Tensor, schedule: StepSchedule) -> float | None:
    """The mean over the prompts; None if a segment was not measured."""
    errors = [predicted_error(segments[..., prompt], schedule) for prompt in range(segments.shape[-1])]
    if any(error is None or not 0 < error < math.inf for error in errors):
        return None
    return fmean(-10 * math.log10(error) for error in errors if error)


def _near_the_goal(found: Sequence[ExpectedSchedule], goal: Goal, segments: torch.Tensor) -> Sequence[ExpectedSchedule]:
    """The few schedules of the dynamic programme that are closest to the goal."""
    if goal.cost is not None:
        return [each for each in found if goal.met_by(each.cost, 0.0)][-2:]
    assert goal.psnr is not None
    good = [each for each in found if (_predicted_psnr(segments, each.schedule) or math.inf) >= goal.psnr]
    # Predictions err by a decibel or two in either direction.
    position = found.index(good[0]) if good else len(found) - 1
    return found[max(0, position - 1) : position + 2]


def _promise(goal: Goal, errors: torch.Tensor, costs: Costs) -> Callable[[StepSchedule, StepSchedule], float]:
    """The expected gain of a neighbour in fidelity, and in cost at the going rate."""

    def decibels(schedule: StepSchedule) -> float:
        error = predicted_error(errors, schedule)
        return -10 * math.log10(error) if error is not None and 0 < error < math.inf else math.nan

    def promise(current: StepSchedule, candidate: StepSchedule) -> float:
        cost = mean_cost(candidate.each, costs)
        gained = decibels(candidate) - decibels(current)
        # Other branches and long segments were not measured.
        gained = 0.0 if math.isnan(gained) else gained
        if goal.cost is not None:
            return gained if goal.met_by(cost, 0.0) else -math.inf
        saved = mean_cost(current.each, costs) - cost
        return -math.inf if saved < 0 else gained + _GOING_RATE * saved

    return promise


def _comparison(
    evaluations: Evaluations | MeanEvaluations, winner: StepSchedule, uniform: Uniform, rival: str | None, steps: int
) -> dict[str, Any]:
    """Figures of the winner, of fewer steps at a similar cost and of the best uniform schedule that costs no more."""
    measured = evaluations.schedule(winner)
    fewer = max(1, round(steps * measured.cost))
    found: dict[str, Any] = {
        "measured": asdict(measured),
        "fewer_steps": {"steps": fewer, **asdict(evaluations.fewer_steps(fewer))},
    }
    if rival is not None:
        found["uniform"] = {"name": rival, **asdict(evaluations.schedule(uniform[rival][0]))}
    return found
