"""The settings of DeepCache."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from DeepCache.files import read_json_text
from DeepCache.plan import PLAN_FORMATS, Plan
from DeepCache.schedule import (
    BETWEEN,
    FORECASTS,
    SKIP_MODES,
    AdaptiveSchedule,
    Between,
    ForecastRule,
    NonUniformSchedule,
    Schedule,
    SkipMode,
    Step,
    StepSchedule,
    UniformSchedule,
    check_integer,
    check_threshold,
    schedule_from_dict,
)

__all__ = ["COMPILE_MODES", "PRESETS", "DeepCacheConfig"]

CompileMode = Literal["none", "regional", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
COMPILE_MODES: tuple[CompileMode, ...] = get_args(CompileMode)
"""The values of `DeepCacheConfig.compile`."""

PRESETS = {"faithful": 2, "balanced": 3, "fast": 5}
"""The presets of `DeepCacheConfig.preset` and their `cache_interval`."""

# Guidance scales up to which the limited forecast has higher fidelity for skipped steps, by scheduler and interval.
# Measured at 2, 4 and 7.5 (docs/guidance.md); the thresholds lie halfway between.
_BETWEEN_2_AND_4, _BETWEEN_4_AND_7, _ALWAYS = 3.0, 5.75, float("inf")
_LIMITED_UP_TO = {
    "DDIMScheduler": {2: _ALWAYS, 3: _ALWAYS, 5: _BETWEEN_4_AND_7},
    "DPMSolverMultistepScheduler": {2: _BETWEEN_4_AND_7, 3: _BETWEEN_2_AND_4, 5: _BETWEEN_2_AND_4},
    "EulerDiscreteScheduler": {2: _BETWEEN_4_AND_7, 3: _BETWEEN_4_AND_7, 5: _BETWEEN_2_AND_4},
    "UniPCMultistepScheduler": {2: _BETWEEN_2_AND_4, 3: _BETWEEN_2_AND_4, 5: _BETWEEN_2_AND_4},
}
_OTHER_SCHEDULERS = {2: _BETWEEN_2_AND_4, 3: _BETWEEN_2_AND_4, 5: _BETWEEN_2_AND_4}


@dataclass(frozen=True)
class DeepCacheConfig:
    """Settings of DeepCache (https://huggingface.co/papers/2312.00858).

    Args:
        cache_interval (`int`, defaults to `3`):
            The number of steps from one full step to the next (N in the paper). `1` makes every step full: nothing is
            cached and the output is bit-identical to the pipeline's own. Larger is faster and less faithful; 2 to 5
            is usual at 50 steps.
        cache_branch_id (`int`, defaults to `0`):
            The skip branch at which shallow steps cut the U-Net, counted from the shallowest: 0 is the one of
            `conv_in`, 1 that of the first layer of the first down block, and so on. Deeper is slower and more
            faithful. The number of branches depends on the U-Net: 12 in Stable Diffusion 1.5, 9 in SDXL.
        skip_mode (`str`, defaults to `"uniform"`):
            Where the full steps are. `"uniform"`: every `cache_interval`-th step is full. `"non-uniform"`: the same
            number, but denser around 30 % of the run, as in the paper. `"adaptive"`: a step is full when the expected
            error of the forecasts exceeds `threshold`, and at least every `cache_interval` steps.
        forecast (`str`, defaults to `"limited"`):
            How a shallow step extrapolates the deep features of earlier full steps, and a skipped step the
            predictions. `"limited"`: a line through the last two values whose slope is bounded by the slope before it,
            more tightly at high guidance scales and with few full steps. `"linear"` and `"quadratic"`: a polynomial
            through the last two or three values, for low guidance scales such as 2. `"none"`: the last value is reused
            unchanged, as in the paper; this is the default of `DeepCacheSDHelper`. `"response"`, for skipped steps:
            the last prediction, moved as predictions have responded to their inputs so far.
        guidance_reuse (`bool`, defaults to `False`):
            Whether a shallow step runs only the conditional half of a guided batch and rebuilds the other half from
            the forecast difference of the two. Halves the cost of shallow steps. Requires classifier-free guidance.
        schedule (`Schedule`, *optional*):
            A schedule of `DeepCache.schedule`, instead of `cache_interval`, `cache_branch_id` and `skip_mode`.
        plan (`Plan`, *optional*):
            The result of `deepcache tune` for a model, a scheduler, a number of steps and a range of guidance scales,
            instead of all of the above. Other models, schedulers, steps and scales raise an error.
        force_plan (`bool`, defaults to `False`):
            Whether to use the plan with other models, schedulers, numbers of steps and guidance scales too. With
            another number of steps it is stretched.
        between (`str`, defaults to `"shallow"`):
            The kind of the steps between full ones: `"shallow"`, `"skipped"` (no layer of the U-Net runs, and its
            prediction is forecast), or `"alternating"` (shallow, skipped, shallow, …). A plan sets it for each step.
        threshold (`float`, defaults to `0.1`):
            With `skip_mode="adaptive"`, the largest expected relative error of a forecast. Larger is faster and less
            faithful.
        compile (`str`, defaults to `"none"`):
            Whether DeepCache applies `torch.compile` to the U-Net. `"default"`, `"reduce-overhead"` (CUDA graphs),
            `"max-autotune"` (the fastest kernels, CUDA graphs) and `"max-autotune-no-cudagraphs"` are modes of
            `torch.compile`, with one graph for full steps and one for shallow ones. `"regional"` compiles only the
            repeated blocks: it starts faster and gains less. Keep `"none"` if you compile `pipe.unet` yourself.

    Raises:
        TypeError: a value is of the wrong type.
        ValueError: a number is out of range, or a name is unknown.

    Example:
        >>> config = DeepCacheConfig(cache_interval=5, forecast="linear")
        >>> DeepCacheConfig.from_json(config.to_json()) == config
        True
    """

    cache_interval: int = 3
    cache_branch_id: int = 0
    skip_mode: SkipMode = "uniform"
    forecast: ForecastRule = "limited"
    guidance_reuse: bool = False
    schedule: Schedule | None = None
    plan: Plan | None = None
    force_plan: bool = False
    compile: CompileMode = "none"
    between: Between = "shallow"
    threshold: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (("cache_interval", 1), ("cache_branch_id", 0)):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), minimum=least))
        object.__setattr__(self, "threshold", check_threshold(self.threshold))
        _check_name("skip_mode", self.skip_mode, SKIP_MODES)
        _check_name("forecast", self.forecast, FORECASTS)
        _check_name("compile", self.compile, COMPILE_MODES)
        _check_name("between", self.between, BETWEEN)
        if self.forecast == "response" and self.between == "shallow":
            raise ValueError(
                "forecast='response' is for skipped steps. Use between='skipped' or between='alternating', or "
                "forecast='limited'"
            )
        if self.guidance_reuse and self.between == "skipped":
            raise ValueError(
                "guidance_reuse halves shallow steps, and between='skipped' has none. Remove guidance_reuse, or use "
                "between='shallow'"
            )
        for name, kind in (("guidance_reuse", bool), ("force_plan", bool), ("schedule", Schedule), ("plan", Plan)):
            value = getattr(self, name)
            if not isinstance(value, kind) and not (value is None and kind is not bool):
                raise TypeError(f"{name} must be a {kind.__name__}, got {value!r}")

    @classmethod
    def preset(cls, name: str, guidance: float | None = None, scheduler: str | None = None) -> DeepCacheConfig:
        """Settings by name: `"faithful"`, `"balanced"` or `"fast"`.

        All have skipped steps between full ones, with the forecast (`"limited"` or `"response"`) that has the higher
        fidelity at this guidance scale with this scheduler. It was measured with the bundled model at one number of
        steps per scheduler; see docs/guidance.md and docs/comfyui.md.

        Args:
            name: one of `PRESETS`.
            guidance: the guidance scale. None, for unknown, counts as a high one.
            scheduler: the class name of the scheduler, such as `DDIMScheduler`; None if unknown.

        Raises:
            ValueError: the preset is unknown.

        Example:
            >>> DeepCacheConfig.preset("balanced", 7.5).forecast, DeepCacheConfig.preset("balanced", 2.0).forecast
            ('response', 'limited')
            >>> DeepCacheConfig.preset("balanced", 7.5, "DDIMScheduler").forecast
            'limited'
        """
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
        interval = PRESETS[name]
        highest = _LIMITED_UP_TO.get(scheduler or "", _OTHER_SCHEDULERS)[interval]
        low = guidance is not None and guidance <= highest
        return cls(interval, between="skipped", forecast="limited" if low else "response")

    @property
    def effective_schedule(self) -> Schedule:
        """The schedule of the plan, or `schedule`, or the one that `skip_mode` selects."""
        if self.plan is not None:
            return self.plan.schedule
        if self.schedule is not None:
            return self.schedule
        if self.skip_mode == "adaptive":
            return AdaptiveSchedule(self.threshold, self.cache_interval, self.cache_branch_id)
        kind = NonUniformSchedule if self.skip_mode == "non-uniform" else UniformSchedule
        return kind(self.cache_interval, branch=self.cache_branch_id)

    @property
    def branches(self) -> tuple[int, ...]:
        """The skip branches that shallow steps may use, in ascending order."""
        return self.effective_schedule.branches if any(step.shallow for step in self.kinds) else ()

    @property
    def kinds(self) -> frozenset[Step]:
        """The kinds of step that a run may have, regardless of the branch."""
        schedule = self.effective_schedule
        if isinstance(schedule, StepSchedule):
            return frozenset(schedule.each)
        shallow = Step(False, forecast=self.feature_forecast, guidance_reuse=self.guidance_reuse)
        skipped = Step(False, forecast=self.forecast, skipped=True)
        between = {"shallow": (shallow,), "skipped": (skipped,), "alternating": (shallow, skipped)}
        return frozenset((Step(True), *(between[self.between] if schedule.branches else ())))

    @property
    def highest_order(self) -> int:
        """The highest order among the forecasts of all steps."""
        return max(step.order for step in self.kinds)

    @property
    def feature_forecast(self) -> ForecastRule:
        """The forecast of deep features; `"response"` applies to predictions only."""
        return "limited" if self.forecast == "response" else self.forecast

    @property
    def any_skipped(self) -> bool:
        """Whether any step may be skipped."""
        return any(step.skipped for step in self.kinds)

    @property
    def any_response(self) -> bool:
        """Whether any skipped step uses `forecast="response"`."""
        return any(step.forecast == "response" for step in self.kinds)

    @property
    def any_guidance_reuse(self) -> bool:
        """Whether any step runs only half of a guided batch."""
        return any(step.guidance_reuse for step in self.kinds)

    def step(self, number: int, steps: int | None, since: int | None = None) -> Step:
        """Returns one step; see `Schedule.step`.

        Args:
            number: the index of the step.
            steps: the number of steps in the run; None if unknown.
            since: the number of steps since the last full one, if that was decided during the run; by default it
                follows from the schedule.
        """
        return self._step_of(self._schedule_of(steps), number, steps, since)

    def _step_of(self, schedule: Schedule, number: int, steps: int | None, since: int | None = None) -> Step:
        step = schedule.step(number, steps)
        if step.full or isinstance(schedule, StepSchedule):
            return step
        if self._is_skipped(schedule, number, steps, since):
            return Step(False, forecast=self.forecast, skipped=True)
        return replace(step, forecast=self.feature_forecast, guidance_reuse=self.guidance_reuse)

    def _is_skipped(self, schedule: Schedule, number: int, steps: int | None, since: int | None) -> bool:
        if self.between != "alternating":
            return self.between == "skipped"
        if since is None:
            since = 1
            while not schedule.step(number - since, steps).full:
                since += 1
        return since % 2 == 0

    def steps(self, count: int) -> tuple[Step, ...]:
        """Every step of a run of `count` steps.

        Example:
            >>> from DeepCache.schedule import pattern_of
            >>> pattern_of(DeepCacheConfig(cache_interval=4).steps(10))
            'F...F...F.'
        """
        count = check_integer("the number of steps", count, minimum=0)
        if count == 0:
            return ()
        schedule = self._schedule_of(count)
        if isinstance(schedule, StepSchedule):
            return schedule.steps(count)
        return tuple(self._step_of(schedule, number, count) for number in range(count))

    def _schedule_of(self, steps: int | None) -> Schedule:
        if self.plan is not None and self.force_plan and steps not in (None, len(self.plan.schedule.each)):
            assert steps is not None
            return self.plan.schedule.stretched(steps)
        return self.effective_schedule

    def to_json(self) -> str:
        """The settings as a JSON object with one key per field."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values, one key per field."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value.to_dict() if isinstance(value, (Schedule, Plan)) else value for name, value in values.items()
        }

    @classmethod
    def from_json(cls, text: str) -> DeepCacheConfig:
        """Reads a JSON object of settings, in which absent fields have their defaults, or a plan.

        Raises:
            ValueError: the text is not a JSON object, or has an unknown key or a value out of range.
            TypeError: a value is of the wrong type.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"a DeepCacheConfig must be a JSON object, and this is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"a DeepCacheConfig must be a JSON object, got {type(values).__name__}")
        if values.get("format") in PLAN_FORMATS:
            return cls(plan=Plan.from_dict(values))
        known = [field.name for field in fields(cls)]
        unknown = [key for key in values if key not in known]
        if unknown:
            names = ", ".join(repr(key) for key in unknown)
            raise ValueError(f"unknown key {names} in a DeepCacheConfig; the keys are {', '.join(known)}")
        if values.get("schedule") is not None:
            values["schedule"] = schedule_from_dict(values["schedule"])
        if values.get("plan") is not None:
            values["plan"] = Plan.from_dict(values["plan"])
        return cls(**values)

    def to_file(self, path: str | Path) -> None:
        """Writes `to_json()` to a file."""
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def from_file(cls, path: str | Path) -> DeepCacheConfig:
        """Reads a file of settings or a plan of `deepcache tune`. Raises as `from_json` does, and `OSError` if the file
        cannot be read."""
        text = read_json_text(path, "settings")
        try:
            return cls.from_json(text)
        except RecursionError:
            raise ValueError(f"{str(path)!r} does not contain settings of DeepCache: it is nested too deeply") from None
        except (ValueError, TypeError) as error:
            raise type(error)(f"{str(path)!r} does not contain settings of DeepCache: {error}") from error


def _check_name(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {value!r}")
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
