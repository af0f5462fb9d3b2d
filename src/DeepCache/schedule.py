"""Schedules: which steps of a denoising run are full, and which branch each shallow step uses.

A schedule is a frozen object that can be compared, printed and saved as JSON:

    >>> UniformSchedule(3).pattern(8)
    'F..F..F.'
    >>> schedule_from_dict(UniformSchedule(3).to_dict()) == UniformSchedule(3)
    True
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

if TYPE_CHECKING:
    from DeepCache.engine.cost import Costs

__all__ = [
    "BETWEEN",
    "FORECASTS",
    "FORECAST_ORDERS",
    "SKIP_MODES",
    "AdaptiveSchedule",
    "BranchSchedule",
    "ExplicitSchedule",
    "NonUniformSchedule",
    "Schedule",
    "Step",
    "StepSchedule",
    "UniformSchedule",
    "WindowSchedule",
    "mean_cost",
    "pattern_of",
    "schedule_from_dict",
]

SkipMode = Literal["uniform", "non-uniform", "adaptive"]
SKIP_MODES: tuple[SkipMode, ...] = get_args(SkipMode)
"""The values of `skip_mode`."""

ForecastRule = Literal["none", "linear", "quadratic", "limited", "response"]
FORECAST_ORDERS: dict[ForecastRule, int] = {"none": 0, "linear": 1, "quadratic": 2, "limited": 2, "response": 2}
"""How many values before the latest one each forecast uses. Plans store the index of a forecast in this mapping."""

FORECASTS = tuple(FORECAST_ORDERS)
"""The values of `forecast`; see `DeepCache.engine.forecast`."""

Between = Literal["shallow", "skipped", "alternating"]
BETWEEN: tuple[Between, ...] = get_args(Between)
"""The values of `between`: the kind of the steps between full ones."""

_BRANCH_SIGNS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Step:
    """One step of a denoising run.

    Args:
        full: whether the whole U-Net runs.
        branch: the skip branch at which a shallow step cuts the U-Net.
        forecast: how a shallow or skipped step, or one with guidance reuse, extrapolates stored values; see
            `FORECASTS`. `"response"` is for skipped steps only.
        guidance_reuse: whether only the conditional half of a guided batch runs, and the other half is rebuilt from
            the forecast difference of the two.
        skipped: whether no layer of the U-Net runs and its prediction is forecast.

    Raises:
        ValueError: the values contradict each other.
    """

    full: bool
    branch: int = 0
    forecast: ForecastRule = "none"
    guidance_reuse: bool = False
    skipped: bool = False

    def __post_init__(self) -> None:
        if type(self.branch) is not int:
            _set(self, "branch", check_integer("a branch", self.branch, minimum=0))
        # NumPy booleans become Python's.
        _set(self, "full", bool(self.full))
        if self.skipped and (self.full or self.guidance_reuse):
            raise ValueError("a skipped step runs no layer: it cannot be full or have guidance reuse")
        if self.forecast == "response" and not self.skipped:
            raise ValueError("forecast 'response' is for skipped steps: use 'limited' for a shallow step")

    @property
    def shallow(self) -> bool:
        """Whether only the layers above the skip branch run."""
        return not (self.full or self.skipped)

    @property
    def order(self) -> int:
        """How many values before the latest one the forecast uses, if they exist."""
        return FORECAST_ORDERS[self.forecast]

    def cost(self, costs: Costs) -> float:
        """Multiply-accumulates as a fraction of a full step's."""
        if self.skipped:
            return 0.0
        share = 1.0 if self.full else costs.share(self.branch)
        return share / 2 if self.guidance_reuse else share


def pattern_of(steps: Iterable[Step]) -> str:
    """One character per step: `F` for full, `-` for skipped, `.` for shallow. With several branches, a shallow step
    shows the number of its branch (`a` for 10, `b` for 11, …).

    Example:
        >>> pattern_of([Step(True), Step(False, branch=2), Step(False, skipped=True)])
        'F.-'
        >>> pattern_of([Step(True), Step(False, branch=0), Step(False, branch=2)])
        'F02'
    """
    steps = tuple(steps)
    several = len({step.branch for step in steps if step.shallow}) > 1
    signs = {step: _BRANCH_SIGNS[step.branch] if several else "." for step in set(steps) if step.shallow}
    return "".join("F" if step.full else signs.get(step, "-") for step in steps)


def mean_cost(steps: Iterable[Step], costs: Costs) -> float:
    """Multiply-accumulates of the steps as a fraction of those of the same number of full steps.

    Raises:
        ValueError: there are no steps.
    """
    shares = [step.cost(costs) for step in steps]
    if not shares:
        raise ValueError("the number of steps must be 1 or more, got 0")
    return sum(shares) / len(shares)


class Schedule(ABC):
    """Which steps of a denoising run are full, and which branch each shallow step uses.

    Steps count from 0. The first step is always full, regardless of the schedule.
    """

    kind: ClassVar[str]
    """The name of this class in JSON."""

    @property
    @abstractmethod
    def branches(self) -> tuple[int, ...]:
        """The skip branches that shallow steps may use, in ascending order; empty if no step can be shallow."""

    @abstractmethod
    def step(self, number: int, steps: int | None) -> Step:
        """Returns one step.

        Args:
            number: the index of the step.
            steps: the number of steps in the run; None if unknown.

        Raises:
            ValueError: the schedule depends on the number of steps, which is unknown or does not match.
        """

    def steps(self, count: int) -> tuple[Step, ...]:
        """Every step of a run of `count` steps."""
        count = check_integer("the number of steps", count, minimum=0)
        return tuple(self.step(number, count) for number in range(count))

    def pattern(self, count: int) -> str:
        """One character per step; see `pattern_of`."""
        return pattern_of(self.steps(count))

    def full_steps(self, count: int) -> int:
        """The number of full steps in a run of `count` steps."""
        return sum(step.full for step in self.steps(count))

    def cost(self, count: int, costs: Costs) -> float:
        """Multiply-accumulates of a run of `count` steps, as a fraction of those without DeepCache.

        Args:
            count: the number of steps.
            costs: the costs of the U-Net, see `DeepCache.engine.cost.count_costs`.

        Example:
            >>> from DeepCache.engine.cost import Costs
            >>> costs = Costs(full=100, shallow={0: 10}, channels={0: 320})
            >>> UniformSchedule(5).cost(50, costs)
            0.28
        """
        return round(mean_cost(self.steps(count), costs), 12)

    def to_dict(self) -> dict[str, Any]:
        """The schedule as JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {"kind": self.kind} | {
            name: value.to_dict() if isinstance(value, Schedule) else value for name, value in values.items()
        }


@dataclass(frozen=True)
class UniformSchedule(Schedule):
    """Every `interval`-th step is full, starting with the first (1:N in section 3.3 of the paper).

    Args:
        interval: the number of steps from one full step to the next; 1 makes every step full.
        branch: the skip branch of shallow steps.

    Example:
        >>> UniformSchedule(3).pattern(8)
        'F..F..F.'
    """

    interval: int
    branch: int = 0

    kind = "uniform"

    def __post_init__(self) -> None:
        _set_integers(self, interval=1, branch=0)

    @property
    def branches(self) -> tuple[int, ...]:
        return (self.branch,) if self.interval > 1 else ()

    def step(self, number: int, steps: int | None) -> Step:
        return Step(number % self.interval == 0, self.branch)


@dataclass(frozen=True)
class NonUniformSchedule(Schedule):
    """The paper's non-uniform 1:N: full steps are dense around a center and sparse away from it (section 3.3 and the
    appendix on hyper-parameters).

    The steps match the published code, which takes the real part of a complex root.

    Args:
        interval: the mean number of steps from one full step to the next, N. A run has ceil(steps / N) full steps.
        center: the step with the densest full steps, at most the last one; by default 30 % of the run, which is the
            paper's 15 of 50.
        power: how strongly full steps concentrate, > 1 and <= 10. It is lowered in steps of 0.02 until the run has
            that many full steps.
        branch: the skip branch of shallow steps.

    Example:
        >>> NonUniformSchedule(5, center=15, power=1.4).pattern(50)
        'F....F...F...F...F...F....F....F.....F.....F......'
    """

    interval: int
    center: int | None = None
    power: float = 1.4
    branch: int = 0

    kind = "non-uniform"

    def __post_init__(self) -> None:
        _set_integers(self, interval=1, branch=0)
        if self.center is not None:
            _set_integers(self, center=0)
        _set(self, "power", _check_number("power", self.power, "above 1 and at most 10"))
        if not 1 < self.power <= 10:
            raise ValueError(f"power must be above 1 and at most 10, got {self.power}")

    @property
    def branches(self) -> tuple[int, ...]:
        return (self.branch,) if self.interval > 1 else ()

    def step(self, number: int, steps: int | None) -> Step:
        steps = _known("a non-uniform schedule", steps)
        return Step(number in _non_uniform_steps(steps, self.interval, self.center, self.power), self.branch)


@dataclass(frozen=True)
class ExplicitSchedule(Schedule):
    """The full steps are listed.

    Args:
        at: the full steps in ascending order, starting with 0; steps beyond the end of the run are ignored.
        branch: the skip branch of shallow steps.

    Example:
        >>> ExplicitSchedule((0, 1, 4)).pattern(8)
        'FF..F...'
    """

    at: tuple[int, ...]
    branch: int = 0

    kind = "explicit"

    def __post_init__(self) -> None:
        numbers = _listed("at", "steps", self.at)
        _set(self, "at", tuple(check_integer("a full step", number, minimum=0) for number in numbers))
        _set_integers(self, branch=0)
        if self.at[:1] != (0,) or any(after <= before for before, after in zip(self.at, self.at[1:], strict=False)):
            raise ValueError(f"the full steps must start with 0 and ascend, got {self.at}")

    @property
    def branches(self) -> tuple[int, ...]:
        return (self.branch,)

    def step(self, number: int, steps: int | None) -> Step:
        return Step(number in self.at, self.branch)


@dataclass(frozen=True)
class WindowSchedule(Schedule):
    """Applies a schedule within a window of steps; outside it every step is full.

    Args:
        schedule: the schedule within the window. Its steps count from the start of the run.
        start: the first step of the window.
        stop: the first step after the window; None for no end.

    Example:
        >>> WindowSchedule(UniformSchedule(3), start=2, stop=7).pattern(10)
        'FF.F..FFFF'
    """

    schedule: Schedule
    start: int = 0
    stop: int | None = None

    kind = "window"

    def __post_init__(self) -> None:
        _check_schedule(self.schedule)
        _set_integers(self, start=0)
        if self.stop is not None:
            _set_integers(self, stop=self.start + 1)

    @property
    def branches(self) -> tuple[int, ...]:
        return self.schedule.branches

    def step(self, number: int, steps: int | None) -> Step:
        inside = number >= self.start and (self.stop is None or number < self.stop)
        return self.schedule.step(number, steps) if inside else Step(True)


@dataclass(frozen=True)
class BranchSchedule(Schedule):
    """Sets the branch of each shallow step by its distance from the last full step.

    The older the deep feature, the more a deeper cut improves fidelity.

    Args:
        schedule: the schedule of the full steps.
        after: the skip branch of the first shallow step after a full one, of the second, and so on; the last one
            applies to all that follow.

    Example:
        >>> BranchSchedule(UniformSchedule(5), after=(0, 0, 1, 3)).pattern(12)
        'F0013F0013F0'
    """

    schedule: Schedule
    after: tuple[int, ...]

    kind = "branches"

    def __post_init__(self) -> None:
        _check_schedule(self.schedule)
        branches = _listed("after", "skip branches", self.after)
        if not branches:
            raise ValueError("after must name one skip branch or more, got none")
        _set(self, "after", tuple(map(_check_sign, branches)))

    @property
    def branches(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.after))) if self.schedule.branches else ()

    def step(self, number: int, steps: int | None) -> Step:
        since = 0
        while since < number and not self.schedule.step(number - since, steps).full:
            since += 1
        return Step(since == 0, self.after[min(since, len(self.after)) - 1] if since else 0)


@dataclass(frozen=True)
class AdaptiveSchedule(Schedule):
    """Decides during the run which steps are full, from the expected error of the forecasts.

    At every full step the engine measures the error that the forecast would have had, and estimates how fast it grows
    with the distance that the input of the U-Net moves. A step is full if the expected error exceeds the threshold.
    The first tenth of the steps (at least two) and the last step are always full.

    The same input on the same device gives the same steps. The samples of a batch share them.

    Args:
        threshold: the largest relative error (root mean square) of a forecast, > 0.
        interval: the maximum number of steps from one full step to the next.
        branch: the skip branch of shallow steps.

    Example:
        >>> AdaptiveSchedule(threshold=0.1, interval=3).pattern(12)
        'FF.........F'
    """

    threshold: float
    interval: int
    branch: int = 0

    kind = "adaptive"

    def __post_init__(self) -> None:
        _set(self, "threshold", check_threshold(self.threshold))
        _set_integers(self, interval=1, branch=0)

    @property
    def branches(self) -> tuple[int, ...]:
        return (self.branch,) if self.interval > 1 else ()

    def step(self, number: int, steps: int | None) -> Step:
        """Full for the steps that are always full; the engine decides on the others during the run."""
        steps = _known("an adaptive schedule", steps)
        start = max(2, -(-steps // 10))
        return Step(self.interval == 1 or number < start or number == steps - 1, self.branch)


@dataclass(frozen=True)
class StepSchedule(Schedule):
    """Lists every step, for a run of exactly this many steps.

    Args:
        each: the steps; the first is full and without guidance reuse.
    """

    each: tuple[Step, ...]

    kind = "steps"

    def __post_init__(self) -> None:
        _set(self, "each", _listed("each", "steps", self.each))
        for step in self.each:
            if not isinstance(step, Step):
                raise TypeError(f"a step must be a Step, got {step!r}")
            _check_sign(step.branch)
            if step.forecast not in FORECASTS:
                raise ValueError(f"forecast must be one of {', '.join(map(repr, FORECASTS))}, got {step.forecast!r}")
        if not self.each or not self.each[0].full or self.each[0].guidance_reuse:
            raise ValueError("the first step must be full and without guidance reuse")

    @property
    def branches(self) -> tuple[int, ...]:
        return tuple(sorted({step.branch for step in self.each if step.shallow}))

    def step(self, number: int, steps: int | None) -> Step:
        if steps is not None and steps != len(self.each):
            raise ValueError(
                f"the schedule is for {len(self.each)} steps, but this run has {steps}. Use {len(self.each)} steps, or "
                "tune a plan for this number"
            )
        # If the number of steps is unknown, steps beyond the last are full.
        return self.each[number] if number < len(self.each) else Step(True)

    def stretched(self, count: int) -> StepSchedule:
        """The schedule scaled to another number of steps, with each full step at the same fraction of the run.

        Example:
            >>> schedule = StepSchedule((Step(True), Step(False), Step(True), Step(False)))
            >>> schedule.stretched(8).pattern(8), schedule.stretched(3).pattern(3)
            ('F...F...', 'FF.')
        """
        count = check_integer("the number of steps", count, minimum=1)
        length = len(self.each)
        each = []
        for number in range(count):
            # The steps that start within this one's share of the run; if none does, the one in progress.
            first, last = -(-number * length // count), -(-(number + 1) * length // count)
            within = self.each[first:last]
            step = next((step for step in within if step.full), None) or self.each[max(first - (not within), 0)]
            if step.full and not within:
                others = (*self.each[first:], *reversed(self.each[:first]))
                step = next((other for other in others if not other.full), step)
            each.append(step)
        return StepSchedule(tuple(each))

    def to_dict(self) -> dict[str, Any]:
        """The schedule as JSON values: one string per property, with one character per step."""
        return {
            "kind": self.kind,
            "full": "".join("F" if step.full else "-" if step.skipped else "." for step in self.each),
            "branch": "".join(_BRANCH_SIGNS[step.branch] for step in self.each),
            "forecast": "".join(str(FORECASTS.index(step.forecast)) for step in self.each),
            "guidance_reuse": "".join("x" if step.guidance_reuse else "." for step in self.each),
        }

    @classmethod
    def from_lines(cls, full: str, branch: str, forecast: str, guidance_reuse: str) -> StepSchedule:
        """Reads the strings that `to_dict` returns.

        Raises:
            ValueError: the strings differ in length or contain an invalid character.
        """
        lines = {"full": full, "branch": branch, "forecast": forecast, "guidance_reuse": guidance_reuse}
        orders = "".join(map(str, range(len(FORECASTS))))
        allowed = {"full": "F.-", "branch": _BRANCH_SIGNS, "forecast": orders, "guidance_reuse": "x."}
        for name, line in lines.items():
            if not isinstance(line, str) or any(character not in allowed[name] for character in line):
                raise ValueError(
                    f"{name!r} of a schedule of steps must consist of the characters {allowed[name]}, got {line!r}"
                )
        if len(set(map(len, lines.values()))) > 1:
            lengths = ", ".join(f"{name} {len(line)}" for name, line in lines.items())
            raise ValueError(f"the strings of a schedule of steps differ in length: {lengths}")
        return cls(
            tuple(
                Step(f == "F", _BRANCH_SIGNS.index(b), FORECASTS[int(order)], reuse == "x", f == "-")
                for f, b, order, reuse in zip(full, branch, forecast, guidance_reuse, strict=True)
            )
        )


def schedule_from_dict(values: dict[str, Any]) -> Schedule:
    """Reads what `Schedule.to_dict` returns.

    Raises:
        ValueError: the kind is unknown, or a value is out of range.
        TypeError: a key is missing or unknown, or a value is of the wrong type.
    """
    classes = (
        *(UniformSchedule, NonUniformSchedule, ExplicitSchedule, WindowSchedule),
        *(BranchSchedule, AdaptiveSchedule, StepSchedule),
    )
    kinds: dict[str, Any] = {each.kind: each for each in classes}
    if not isinstance(values, dict) or values.get("kind") not in tuple(kinds):
        raise ValueError(f"a schedule must be an object whose 'kind' is one of {', '.join(kinds)}, got {values!r}")
    cls = kinds[values["kind"]]
    arguments = {name: value for name, value in values.items() if name != "kind"}
    if "schedule" in arguments:
        arguments["schedule"] = schedule_from_dict(arguments["schedule"])
    make = cls.from_lines if cls is StepSchedule else cls
    try:
        made: Schedule = make(**arguments)
    except TypeError as error:
        raise TypeError(f"a schedule of kind {values['kind']!r}: {error}") from error
    return made


def check_integer(name: str, value: Any, minimum: int) -> int:
    """A whole number >= `minimum` as an `int`. NumPy and torch scalars and floats such as 3.0 are accepted."""
    plain = _plain(value)
    try:
        # True is an int in Python, but not a count. One-element arrays have __index__ too.
        if isinstance(plain, bool) or hasattr(plain, "shape"):
            raise TypeError
        number = int(plain) if isinstance(plain, float) and plain.is_integer() else operator.index(plain)
    except TypeError:
        raise TypeError(f"{name} must be an int of {minimum} or more, got {value!r}") from None
    if number < minimum:
        raise ValueError(f"{name} must be {minimum} or more, got {number}")
    return number


def check_threshold(value: Any) -> float:
    """A finite number above 0 as a plain Python number."""
    number = _check_number("threshold", value, "above 0")
    if not 0 < number < float("inf"):
        raise ValueError(f"threshold must be above 0, got {number}")
    return number


def _check_number(name: str, value: Any, allowed: str) -> float:
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, (int, float)):
        raise TypeError(f"{name} must be a number {allowed}, got {value!r}")
    return plain


def _plain(value: Any) -> Any:
    """Converts a NumPy or torch scalar to a Python number."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def _listed(name: str, what: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable) or getattr(values, "shape", None) == ():
        raise TypeError(f"{name} must be a sequence of {what}, got {values!r}")
    return tuple(values)


# Sets a field of a frozen dataclass, in __post_init__.
_set = object.__setattr__


def _set_integers(schedule: Schedule, **minimums: int) -> None:
    for name, minimum in minimums.items():
        _set(schedule, name, check_integer(name, getattr(schedule, name), minimum))


def _check_schedule(value: object) -> None:
    if not isinstance(value, Schedule):
        raise TypeError(f"schedule must be a schedule of DeepCache.schedule, got {value!r}")
    if isinstance(value, (StepSchedule, AdaptiveSchedule)):
        raise ValueError(f"a schedule of kind {value.kind!r} cannot be part of another schedule")


def _check_sign(branch: Any) -> int:
    """A branch that has a character in patterns."""
    number = check_integer("a branch", branch, minimum=0)
    if number >= len(_BRANCH_SIGNS):
        raise ValueError(f"a branch must be {len(_BRANCH_SIGNS) - 1} or less, got {number}")
    return number


def _known(schedule: str, steps: int | None) -> int:
    if steps is None:
        raise ValueError(
            f"{schedule} depends on the number of steps, which is unknown: the U-Net is called without a scheduler and "
            "with a timestep that is not an element of a list"
        )
    if steps < 1:
        raise ValueError(f"the number of steps must be 1 or more, got {steps}")
    return steps


@cache
def _non_uniform_steps(steps: int, interval: int, center: int | None, power: float) -> frozenset[int]:
    count = -(-steps // interval)
    middle = round(0.3 * steps) if center is None else min(center, steps)
    while True:
        first, last = (complex(end) ** (1 / power) for end in (-middle, steps - middle))
        roots = (first + (last - first) * index / count for index in range(count + 1))
        distances = sorted({int((root**power).real) for root in roots})
        found = {0, *(distance + middle for distance in distances[1:-1])}
        # A power of 1 spaces them evenly, which gives the largest number.
        if len(found) == count or power == 1:
            return frozenset(found)
        power = max(1.0, power - 0.02)
