"""Decides what a call does: what the schedule says, if the stored tensors fit the call.

Otherwise the step is full. That costs time, whereas a deep feature of another call would spoil the image.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.error_growth import ErrorGrowth, relative_error
from DeepCache.engine.slot import Slot
from DeepCache.engine.trajectory import StepInfo
from DeepCache.schedule import AdaptiveSchedule, Step

FIRST = "first of the run"
NEW_SLOT = "first call of its slot"
OTHER_SHAPE = "other shape, dtype or device"
FULL_STEP_OMITTED = "replaces a full step that was omitted"
WHICH_CALL = "not known yet which call of the step before it continues"
NOT_ANSWERED = "called where it could not be skipped"

_FULL = Step(True)


class Decision(NamedTuple):
    """The step of a call, and the reason if it is full although not scheduled."""

    step: Step
    reason: str = ""


class Planner:
    """The decisions of one run."""

    def __init__(self, config: DeepCacheConfig) -> None:
        self._config = config
        schedule = config.effective_schedule
        self._growth = ErrorGrowth(schedule) if isinstance(schedule, AdaptiveSchedule) else None
        self._steps: tuple[Step, ...] = ()

    def scheduled(self, number: int, steps: int | None) -> Step:
        """The step of the schedule; a `ValueError` if the schedule does not fit a run of so many steps."""
        if steps is None:
            return self._config.step(number, None)
        if len(self._steps) != steps:
            self._steps = self._config.steps(steps)
        # Steps beyond the end are not in the schedule.
        return self._steps[number] if number < steps else _FULL

    def decide(self, info: StepInfo, slot: Slot | None, sample: torch.Tensor, missing: str = NEW_SLOT) -> Decision:
        """The decision for a call with this slot and sample. `missing` is why it has no slot after the first step."""
        if self._growth is not None:
            self._growth.note_input(info.step, sample)
        if info.belongs_to_no_run:
            return Decision(_FULL, info.doubt)
        if slot is None or not slot.fits(sample):
            reason = OTHER_SHAPE if slot is not None else FIRST if info.step == 0 else info.doubt or missing
            return Decision(_FULL, "" if self.scheduled(info.step, info.steps).full else reason)
        step = self.scheduled(info.step, info.steps)
        if self._growth is not None and not step.full:
            due = self._growth.is_due(info.step)
            step = _FULL if due else self._config.step(info.step, info.steps, info.step - slot.last_full)
        if not step.full:
            between = range(slot.last_full + 1, info.step)
            # The pipeline has omitted a full step, or did not make this call at it.
            if any(self.scheduled(number, info.steps).full for number in between):
                return Decision(_FULL, FULL_STEP_OMITTED)
        if step.guidance_reuse and slot.guidance is None:
            # Guidance was disabled during the run: there is no other half.
            step = replace(step, guidance_reuse=False)
        return Decision(step)

    def measures(self, info: StepInfo, step: Step) -> bool:
        """Whether the schedule needs the error that a forecast would have had at this call."""
        return self._growth is not None and step.full and info.slot == 0 and info.step > 0

    def note_error(self, info: StepInfo, forecast: torch.Tensor | None, truth: torch.Tensor) -> None:
        """Records a forecast, None if there was none, and the truth at a call that `measures`."""
        assert self._growth is not None
        self._growth.note_full(info.step, None if forecast is None else relative_error(forecast, truth))
