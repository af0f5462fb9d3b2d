"""Plans: schedules tuned for a model, a scheduler and a number of steps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from DeepCache.files import read_json_text
from DeepCache.schedule import StepSchedule, schedule_from_dict
from DeepCache.text import shown

__all__ = ["PLAN_FORMAT", "PLAN_FORMATS", "Plan"]

PLAN_FORMAT = "DeepCache plan 2"
"""The `format` key of a plan's file."""

PLAN_FORMATS = (PLAN_FORMAT, "DeepCache plan 1")
"""The formats that can be read. Plans of format 1 do not record guidance scales."""

_FIX = "Give a file that `deepcache tune` wrote."
_KEYS = ("format", "schedule", "model", "scheduler", "guidance", "tuned", "results")


@dataclass(frozen=True)
class Plan:
    """A schedule that `deepcache tune` found, and what it applies to.

    Args:
        schedule: the steps.
        model: identifies the U-Net, see `DeepCache.engine.fingerprint.fingerprint`.
        scheduler: class and configuration of the scheduler.
        tuned: the settings of the tuning: the model's name, steps, guidance, prompts, seeds, goal.
        results: cost and fidelity, predicted and measured, on the tuning prompts and on held-out prompts.
        guidance: the lowest and the highest guidance scale of the tuning; None if unknown (plans of format 1) or if
            the pipeline has no guidance.

    Raises:
        TypeError: `guidance` is not a pair of numbers.
        ValueError: `guidance` is not a range of numbers >= 0.

    Example:
        >>> from DeepCache.schedule import Step
        >>> plan = Plan(StepSchedule((Step(True), Step(False, forecast="linear"))), model={}, scheduler={})
        >>> Plan.from_dict(plan.to_dict()) == plan
        True
    """

    schedule: StepSchedule
    model: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    tuned: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    guidance: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.guidance is not None:
            object.__setattr__(self, "guidance", _range(self.guidance))

    def __hash__(self) -> int:
        return hash(self.schedule)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "format": PLAN_FORMAT,
            "schedule": self.schedule.to_dict(),
            "model": dict(self.model),
            "scheduler": dict(self.scheduler),
            "guidance": None if self.guidance is None else list(self.guidance),
            "tuned": dict(self.tuned),
            "results": dict(self.results),
        }

    @classmethod
    def from_dict(cls, values: Any) -> Plan:
        """Reads what `to_dict` returns.

        Raises:
            ValueError: it is not a plan of a known format, or its schedule or guidance is invalid.
            TypeError: a value is of the wrong type.
        """
        if not isinstance(values, dict) or values.get("format") not in PLAN_FORMATS:
            found = values.get("format") if isinstance(values, dict) else values
            raise ValueError(f"a plan must be a JSON object with the 'format' {PLAN_FORMAT!r}, got {shown(found)}")
        missing = [key for key in ("schedule", "model", "scheduler") if not isinstance(values.get(key), dict)]
        missing += [key for key in ("tuned", "results") if not isinstance(values.get(key, {}), dict)]
        keys = [key for key in _KEYS if key != "guidance" or values["format"] == PLAN_FORMAT]
        unknown = [key for key in values if key not in keys]
        if missing or unknown:
            wrong = f"lacks the object {missing[0]!r}" if missing else f"has the unknown key {unknown[0]!r}"
            raise ValueError(f"the plan {wrong}; its keys are {', '.join(keys)}")
        schedule = schedule_from_dict(values["schedule"])
        if not isinstance(schedule, StepSchedule):
            raise ValueError(f"the schedule of a plan must be of kind 'steps', got {schedule.kind!r}")
        others = {key: values.get(key, {}) for key in ("model", "scheduler", "tuned", "results")}
        return cls(schedule, **others, guidance=values.get("guidance"))

    def to_file(self, path: str | Path) -> None:
        """Writes the plan as JSON."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_file(cls, path: str | Path) -> Plan:
        """Reads a plan.

        Raises:
            OSError: the file cannot be read.
            ValueError: it does not contain a plan.
        """
        text = read_json_text(path, "plan")
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(f"{str(path)!r} does not contain a plan: it is not JSON ({error}). {_FIX}") from error
        except RecursionError:
            raise ValueError(f"{str(path)!r} does not contain a plan: it is nested too deeply. {_FIX}") from None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{str(path)!r} does not contain a plan: {error}. {_FIX}") from error


def _range(guidance: Any) -> tuple[float, float]:
    pair = tuple(guidance) if isinstance(guidance, (list, tuple)) else ()
    if len(pair) != 2 or not all(isinstance(scale, (int, float)) and not isinstance(scale, bool) for scale in pair):
        raise TypeError(f"guidance of a plan must be the lowest and the highest scale, got {guidance!r}")
    if not 0 <= pair[0] <= pair[1] < math.inf:
        raise ValueError(f"guidance of a plan must be a range of scales >= 0, got {pair[0]} to {pair[1]}")
    return float(pair[0]), float(pair[1])
