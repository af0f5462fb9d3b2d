"""Which steps of a trajectory are full, and which branch each shallow step uses.

Pure Python: nothing here knows about tensors. A schedule is a plain, frozen object that is compared, printed and saved:

    >>> print(UniformSchedule(3))
    UniformSchedule(interval=3, branch=0)
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
"""The values that `skip_mode` takes."""

ForecastRule = Literal["none", "linear", "quadratic", "limited", "response"]
FORECAST_ORDERS: dict[ForecastRule, int] = {"none": 0, "linear": 1, "quadratic": 2, "limited": 2, "response": 2}
"""For each forecast, how many values before the latest one it takes into account; a plan knows them by their place."""

FORECASTS = tuple(FORECAST_ORDERS)
"""The values that `forecast` takes; see `DeepCache.engine.forecast` and `DeepCache.engine.prediction`."""

Between = Literal["shallow", "skipped", "alternating"]
BETWEEN: tuple[Between, ...] = get_args(Between)
"""The values that `between` takes: what the steps between full ones are."""


_BRANCH_SIGNS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Step:
    """What one step of a trajectory does.

    Args:
        full: whether the whole U-Net runs.
        branch: the skip branch at which a shallow step cuts it.
        forecast: how a shallow or skipped step, or one with guidance reuse, continues what earlier steps stored; see
            `FORECASTS`. `"response"` is for skipped steps only.
        guidance_reuse: whether only the half of a guided batch with the prompt runs, and the other half is rebuilt
            from the forecast difference of the two.
        skipped: whether no layer of the U-Net runs, and its prediction is forecast.

    Raises:
        ValueError: the step is full and skipped, or skipped with guidance reuse, or its forecast does not suit it.
    """

    full: bool
    branch: int = 0
    forecast: ForecastRule = "none"
    guidance_reuse: bool = False
    skipped: bool = False

    def __post_init__(self) -> None:
        if type(self.branch) is not int:
            _set(self, "branch", check_integer("a branch", self.branch, minimum=0))
        # It may be NumPy's, where a mask says which steps are full.
        _set(self, "full", bool(self.full))
        if self.skipped and (self.full or self.guidance_reuse):
            raise ValueError("a skipped step runs no layer: it cannot be full or have guidance reuse")
        if self.forecast == "response" and not self.skipped:
            raise ValueError("forecast 'response' is for skipped steps: take 'limited' for a shallow step")

    @property
    def shallow(self) -> bool:
        """Whether the layers above the skip branch run and no others."""
        return not (self.full or self.skipped)

    @property
    def order(self) -> int:
        """How many values before the latest one the forecast takes into account, as far as there are so many."""
        return FORECAST_ORDERS[self.forecast]

    def cost(self, costs: Costs) -> float:
        """Multiply-accumulates as a share of those of a full step."""
        if self.skipped:
            return 0.0
        share = 1.0 if self.full else costs.share(self.branch)
        return share / 2 if self.guidance_reuse else share


def pattern_of(steps: Iterable[Step]) -> str:
    """One character a step: `F` for a full step; `-` for a skipped one; `.` for a shallow one, or where several
    branches are used the number of its branch (`a` for 10, `b` for 11, …).

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
    """Multiply-accumulates of the steps as a share of as many full ones, 0 to 1.

    Raises:
        ValueError: there are no steps.
    """
    shares = [step.cost(costs) for step in steps]
    if not shares:
        raise ValueError("the number of steps must be 1 or more, got 0")
    return sum(shares) / len(shares)


class Schedule(ABC):
    """Which steps of a trajectory are full, and which branch each shallow step uses.

    Steps are counted from 0 at the start of the trajectory. The first is full whatever a schedule says.
    """

    kind: ClassVar[str]
    """Its name in JSON."""

    @property
    @abstractmethod
    def branches(self) -> tuple[int, ...]:
        """Every skip branch that a shallow step may use, from the shallowest; none where no step can be shallow."""

    @abstractmethod
    def step(self, number: int, steps: int | None) -> Step:
        """What a step does.

        Args:
            number: the step.
            steps: how many there are in the trajectory; None where nothing tells.

        Raises:
            ValueError: the schedule depends on how many steps there are, and that is not known or does not fit.
        """

    def steps(self, count: int) -> tuple[Step, ...]:
        """What every step of a trajectory of so many steps does."""
        count = check_integer("the number of steps", count, minimum=0)
        return tuple(self.step(number, count) for number in range(count))

    def pattern(self, count: int) -> str:
        """One character a step; see `pattern_of`."""
        return pattern_of(self.steps(count))

    def full_steps(self, count: int) -> int:
        """The number of full steps among so many."""
        return sum(step.full for step in self.steps(count))

    def cost(self, count: int, costs: Costs) -> float:
        """Multiply-accumulates of a trajectory of so many steps, as a share of those without DeepCache.

        Args:
            count: number of steps.
            costs: those of the U-Net, see `DeepCache.engine.cost.count_costs`.

        Example:
            >>> from DeepCache.engine.cost import Costs
            >>> costs = Costs(full=100, shallow={0: 10}, channels={0: 320})
            >>> UniformSchedule(5).cost(50, costs)
            0.28
        """
        return round(mean_cost(self.steps(count), costs), 12)

    def to_dict(self) -> dict[str, Any]:
        """The schedule as what JSON can hold."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {"kind": self.kind} | {
            name: value.to_dict() if isinstance(value, Schedule) else value for name, value in values.items()
        }


@dataclass(frozen=True)
class UniformSchedule(Schedule):
    """Every `interval`-th step is full, beginning with the first (the paper, section 3.3: 1:N).

    Args:
        interval: number of steps from one full step to the next; 1 makes every step full.
        branch: the skip branch of shallow steps.

    Example:
        >>> UniformSchedule(3).pattern(8)
        'F..F..F.'
    """

    interval: int
    branch: int = 0

    kind = "uniform"

    def __post_init__(self) -> None:
        _set(self, "interval", check_integer("interval", self.interval, minimum=1))
        _set(self, "branch", check_integer("branch", self.branch, minimum=0))

    @property
    def branches(self) -> tuple[int, ...]:
        return (self.branch,) if self.interval > 1 else ()

    def step(self, number: int, steps: int | None) -> Step:
        return Step(number % self.interval == 0, self.branch)


@dataclass(frozen=True)
class NonUniformSchedule(Schedule):
    """The paper's non-uniform 1:N: full steps are dense around a center and sparse away from it (section 3.3 and the
    appendix on hyper-parameters).

    The steps are those of the published program at the same settings. It takes a root of a negative number, which
    Python makes complex, and goes on with the real part; that is done here too.

    Args:
        interval: the mean number of steps from one full step to the next, N; there are ceil(steps / N) full ones.
        center: the step around which they are densest, or the last one where it lies beyond; by default three tenths
            of the trajectory, which is the paper's 15 of 50.
        power: how much denser, above 1. It is lowered in steps of 0.02 as far as it takes to get that many full steps.
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
        _set(self, "interval", check_integer("interval", self.interval, minimum=1))
        _set(self, "branch", check_integer("branch", self.branch, minimum=0))
        if self.center is not None:
            _set(self, "center", check_integer("center", self.center, minimum=0))
        _set(self, "power", check_number("power", self.power, "above 1 and at most 10"))
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
        at: the full steps, from 0, in rising order; those beyond the end of a trajectory do not matter.
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
        _set(self, "branch", check_integer("branch", self.branch, minimum=0))
        if self.at[:1] != (0,) or any(after <= before for before, after in zip(self.at, self.at[1:], strict=False)):
            raise ValueError(f"the full steps must begin with 0 and rise, got {self.at}")

    @property
    def branches(self) -> tuple[int, ...]:
        return (self.branch,)

    def step(self, number: int, steps: int | None) -> Step:
        return Step(number in self.at, self.branch)


@dataclass(frozen=True)
class WindowSchedule(Schedule):
    """A schedule that holds within a window; outside it every step is full.

    Args:
        schedule: what holds within the window. Its steps are counted from the start of the trajectory all the same.
        start: the first step of the window.
        stop: the first step after it; None for a window without an end.

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
        _set(self, "start", check_integer("start", self.start, minimum=0))
        if self.stop is not None:
            _set(self, "stop", check_integer("stop", self.stop, minimum=self.start + 1))

    @property
    def branches(self) -> tuple[int, ...]:
        return self.schedule.branches

    def step(self, number: int, steps: int | None) -> Step:
        inside = number >= self.start and (self.stop is None or number < self.stop)
        return self.schedule.step(number, steps) if inside else Step(True)


@dataclass(frozen=True)
class BranchSchedule(Schedule):
    """A schedule whose shallow steps use a different branch each, counted from the full step before them.

    The older the deep feature, the more is gained by cutting deeper.

    Args:
        schedule: says which steps are full.
        after: the skip branch of the first shallow step after a full one, of the second, …; the last one holds for all
            that follow.

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
    """Full steps come where the forecasts have become too wrong, which is found out during the run.

    At every full step the engine measures how far the forecast would have been off, and from that how fast its error
    grows with the distance that the input of the U-Net has moved. A step is full where the error expected of its
    forecast exceeds the threshold. The first tenth of the steps, two at least, and the last step are full.

    The same input on the same device gives the same steps; a batch is decided upon as a whole.

    Args:
        threshold: how large the error of a forecast may be, as a share of what is forecast (root mean square), above 0.
        interval: the most steps from one full step to the next.
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
        _set(self, "interval", check_integer("interval", self.interval, minimum=1))
        _set(self, "branch", check_integer("branch", self.branch, minimum=0))

    @property
    def branches(self) -> tuple[int, ...]:
        return (self.branch,) if self.interval > 1 else ()

    def step(self, number: int, steps: int | None) -> Step:
        """The steps that are full in any case; which others are is decided during the run."""
        steps = _known("an adaptive schedule", steps)
        start = max(2, -(-steps // 10))
        return Step(self.interval == 1 or number < start or number == steps - 1, self.branch)


@dataclass(frozen=True)
class StepSchedule(Schedule):
    """Every step is spelled out, with its branch, forecast and guidance reuse, for a trajectory of that many steps.

    Args:
        each: what each step does; the first is full and without guidance reuse.
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
                f"the schedule is for {len(self.each)} steps, and this trajectory has {steps}: take as many steps, or "
                "tune a plan for this number"
            )
        # Where nothing tells how many steps there are, those beyond the last are full.
        return self.each[number] if number < len(self.each) else Step(True)

    def stretched(self, count: int) -> StepSchedule:
        """The schedule over another number of steps, each full step as far along the trajectory as it was.

        Example:
            >>> schedule = StepSchedule((Step(True), Step(False), Step(True), Step(False)))
            >>> schedule.stretched(8).pattern(8), schedule.stretched(3).pattern(3)
            ('F...F...', 'FF.')
        """
        count = check_integer("the number of steps", count, minimum=1)
        length = len(self.each)
        each = []
        for number in range(count):
            # The steps of this schedule that begin within that of the other one; where none does, the one under way.
            first, last = -(-number * length // count), -(-(number + 1) * length // count)
            within = self.each[first:last]
            step = next((step for step in within if step.full), None) or self.each[max(first - (not within), 0)]
            if step.full and not within:
                others = (*self.each[first:], *reversed(self.each[:first]))
                step = next((other for other in others if not other.full), step)
            each.append(step)
        return StepSchedule(tuple(each))

    def to_dict(self) -> dict[str, Any]:
        """One character a step and a line for each of the four things that it says."""
        return {
            "kind": self.kind,
            "full": "".join("F" if step.full else "-" if step.skipped else "." for step in self.each),
            "branch": "".join(_BRANCH_SIGNS[step.branch] for step in self.each),
            "forecast": "".join(str(FORECASTS.index(step.forecast)) for step in self.each),
            "guidance_reuse": "".join("x" if step.guidance_reuse else "." for step in self.each),
        }

    @classmethod
    def from_lines(cls, full: str, branch: str, forecast: str, guidance_reuse: str) -> StepSchedule:
        """The schedule that `to_dict` writes as lines of one character a step.

        Raises:
            ValueError: the lines differ in length or hold another character.
        """
        lines = {"full": full, "branch": branch, "forecast": forecast, "guidance_reuse": guidance_reuse}
        orders = "".join(map(str, range(len(FORECASTS))))
        allowed = {"full": "F.-", "branch": _BRANCH_SIGNS, "forecast": orders, "guidance_reuse": "x."}
        for name, line in lines.items():
            if not isinstance(line, str) or any(character not in allowed[name] for character in line):
                raise ValueError(f"{name!r} of a schedule of steps takes the characters {allowed[name]}, got {line!r}")
        if len(set(map(len, lines.values()))) > 1:
            lengths = ", ".join(f"{name} {len(line)}" for name, line in lines.items())
            raise ValueError(f"the lines of a schedule of steps differ in length: {lengths}")
        return cls(
            tuple(
                Step(f == "F", _BRANCH_SIGNS.index(b), FORECASTS[int(order)], reuse == "x", f == "-")
                for f, b, order, reuse in zip(full, branch, forecast, guidance_reuse, strict=True)
            )
        )


def schedule_from_dict(values: dict[str, Any]) -> Schedule:
    """The schedule that `Schedule.to_dict` made this of.

    Raises:
        ValueError: there is no such kind of schedule, or a value is out of its range.
        TypeError: a key is missing or unknown, or a value is of the wrong type.
    """
    kinds: dict[str, Any] = {
        cls.kind: cls
        for cls in (
            UniformSchedule,
            NonUniformSchedule,
            ExplicitSchedule,
            WindowSchedule,
            BranchSchedule,
            AdaptiveSchedule,
            StepSchedule,
        )
    }
    if not isinstance(values, dict) or values.get("kind") not in tuple(kinds):
        raise ValueError(f"a schedule is an object whose 'kind' is one of {', '.join(kinds)}, got {values!r}")
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
    """A whole number as an `int`: also one of NumPy, a tensor of one, or a float such as 3.0.

    Args:
        name: what it is called in the error.
        value: the number.
        minimum: the least that is allowed.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it is too small.
    """
    plain = _plain(value)
    try:
        # bool is an int to Python, but a person who wrote True meant something else. Arrays have an index too.
        if isinstance(plain, bool) or hasattr(plain, "shape"):
            raise TypeError
        number = int(plain) if isinstance(plain, float) and plain.is_integer() else operator.index(plain)
    except TypeError:
        raise TypeError(f"{name} must be an int of {minimum} or more, got {value!r}") from None
    if number < minimum:
        raise ValueError(f"{name} must be {minimum} or more, got {number}")
    return number


def check_number(name: str, value: Any, allowed: str) -> float:
    """A number as an `int` or a `float`: also one of NumPy, or a tensor of one.

    Args:
        name: what it is called in the error.
        value: the number.
        allowed: which numbers are allowed, for the error.

    Raises:
        TypeError: it is not a number.
    """
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, (int, float)):
        raise TypeError(f"{name} must be a number {allowed}, got {value!r}")
    return plain


def check_threshold(value: Any) -> float:
    """A number above 0, as `check_number` returns it.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not above 0, or infinite.
    """
    number = check_number("threshold", value, "above 0")
    if not 0 < number < float("inf"):
        raise ValueError(f"threshold must be above 0, got {number}")
    return number


def _plain(value: Any) -> Any:
    """A number of NumPy, or a tensor of one, as a number of Python; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def _listed(name: str, what: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable) or getattr(values, "shape", None) == ():
        raise TypeError(f"{name} must be a sequence of {what}, got {values!r}")
    return tuple(values)


# Sets a field of a frozen dataclass, which is for its `__post_init__` alone.
_set = object.__setattr__


def _check_schedule(value: object) -> None:
    if not isinstance(value, Schedule):
        raise TypeError(f"schedule must be a schedule of DeepCache.schedule, got {value!r}")
    if isinstance(value, (StepSchedule, AdaptiveSchedule)):
        raise ValueError(f"a schedule of the kind {value.kind!r} cannot be part of another schedule")


def _check_sign(branch: Any) -> int:
    """A branch that a pattern has a sign for."""
    number = check_integer("a branch", branch, minimum=0)
    if number >= len(_BRANCH_SIGNS):
        raise ValueError(f"a branch must be {len(_BRANCH_SIGNS) - 1} or less, got {number}")
    return number


def _known(schedule: str, steps: int | None) -> int:
    """How many steps there are.

    Raises:
        ValueError: that is not known, or there are none.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"the number of steps must be 1 or more, got {steps}")
    if steps is None:
        raise ValueError(
            f"{schedule} depends on how many steps there are, and nothing tells: the U-Net is called without a "
            "scheduler and with a timestep that is no element of a list"
        )
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
        # At a power of 1 they are evenly spread, and as many as can be had.
        if len(found) == count or power == 1:
            return frozenset(found)
        power = max(1.0, power - 0.02)
