"""A plan: a schedule that was tuned to a model, a scheduler and a number of steps, with what it was tuned on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from DeepCache.schedule import StepSchedule, schedule_from_dict

__all__ = ["PLAN_FORMAT", "Plan"]

PLAN_FORMAT = "DeepCache plan 1"
"""The `format` in the file of a plan."""

_KEYS = ("format", "schedule", "model", "scheduler", "tuned", "results")


@dataclass(frozen=True)
class Plan:
    """A schedule that `deepcache tune` made, and what it is for.

    Args:
        schedule: what each step does.
        model: what tells the U-Net from others, see `DeepCache.engine.fingerprint.fingerprint`.
        scheduler: class and configuration of the scheduler.
        tuned: how it was tuned: the model's name, the steps asked for, guidance, prompts, seeds, the goal.
        results: cost and fidelity, predicted and measured, on the prompts that it was tuned on and on others.

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

    def __hash__(self) -> int:
        return hash(self.schedule)

    def to_dict(self) -> dict[str, Any]:
        """The plan as what JSON can hold."""
        return {
            "format": PLAN_FORMAT,
            "schedule": self.schedule.to_dict(),
            "model": dict(self.model),
            "scheduler": dict(self.scheduler),
            "tuned": dict(self.tuned),
            "results": dict(self.results),
        }

    @classmethod
    def from_dict(cls, values: Any) -> Plan:
        """The plan that `to_dict` made this of.

        Raises:
            ValueError: it is no plan, or one of another version, or its schedule is out of order.
            TypeError: a value is of the wrong type.
        """
        if not isinstance(values, dict) or values.get("format") != PLAN_FORMAT:
            found = values.get("format") if isinstance(values, dict) else values
            raise ValueError(f"a plan is a JSON object with the 'format' {PLAN_FORMAT!r}, got {found!r}")
        missing = [key for key in ("schedule", "model", "scheduler") if not isinstance(values.get(key), dict)]
        missing += [key for key in ("tuned", "results") if not isinstance(values.get(key, {}), dict)]
        unknown = [key for key in values if key not in _KEYS]
        if missing or unknown:
            wrong = f"lacks the object {missing[0]!r}" if missing else f"has the unknown key {unknown[0]!r}"
            raise ValueError(f"the plan {wrong}; its keys are {', '.join(_KEYS)}")
        schedule = schedule_from_dict(values["schedule"])
        if not isinstance(schedule, StepSchedule):
            raise ValueError(f"the schedule of a plan is of the kind 'steps', got {schedule.kind!r}")
        others = {key: values.get(key, {}) for key in ("model", "scheduler", "tuned", "results")}
        return cls(schedule, **others)

    def to_file(self, path: str | Path) -> None:
        """Writes the plan as JSON."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_file(cls, path: str | Path) -> Plan:
        """Reads a plan that `to_file` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: it holds no plan.
        """
        text = Path(path).read_text(encoding="utf-8")
        try:
            return cls.from_dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{str(path)!r} holds no plan: {error}") from error
