"""Measures how wrong the steps between two full steps are, for every place and length of such a segment.

A segment is a full step and the shallow or skipped steps after it, up to the next full step. What is wrong with it
depends on where it is, how long it is, and on the full step before it, where the forecast takes its direction from. All
that is measured along the run without DeepCache: a shallow step gets the true input and the forecast of the true
features, so that each measurement takes one shallow step and nothing else; a skipped step gets the true input and the
predictions of true full steps, and runs nothing. Errors that feed on themselves in a run, as those of a line through
past predictions do at a high guidance scale, do not show that way. How much a wrong prediction at a step changes the
images is measured at some steps by drawing on from there. The error of a whole schedule is then put together from its
segments without being drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from DeepCache.engine.forecast import PredictionForecast, stiffness
from DeepCache.engine.guidance import latents, output_tensor
from DeepCache.engine.layouts import SkipBranch, layout_of
from DeepCache.engine.patch import ShallowPatch
from DeepCache.generation.painter import Painter
from DeepCache.schedule import ForecastRule
from DeepCache.tune.recording import Recording, draw_from

__all__ = ["SegmentErrors", "gaps_measured", "longest_segment", "skipped_forecast", "steps_of_sensitivity"]


def longest_segment(steps: int) -> int:
    """The most steps between two full ones that are considered."""
    return max(1, min(12, steps // 3))


def gaps_measured(steps: int) -> list[int]:
    """Distances of two full steps that forecasts are measured for; between them the errors are interpolated."""
    longest = longest_segment(steps) + 1
    return sorted({gap for gap in (1, 2, 4, 8) if gap < longest} | {longest})


def skipped_forecast(allowed: Sequence[ForecastRule]) -> ForecastRule:
    """The forecast of the skipped steps that are measured: the one that carries the least error on."""
    return "response" if "response" in allowed else "limited"


def steps_of_sensitivity(steps: int) -> list[int]:
    """Steps that images are drawn on from. They lie closer towards the end, where more changes from one to the next and
    less is left to draw."""
    distances = [1]
    while distances[-1] < steps - 1:
        distances.append(min(steps - 1, max(distances[-1] + 1, round(distances[-1] * 1.35))))
    return [steps - distance for distance in reversed(distances)]


@dataclass
class SegmentErrors:
    """Measures the segments of one recorded batch.

    Args:
        painter: what the batch was drawn with.
        first: number of the first prompt of the batch.
        recording: the run without DeepCache.
        branch: the skip branch of shallow steps.
        guidance: the guidance scale.
        on_call: called after every shallow step.
    """

    painter: Painter
    first: int
    recording: Recording
    branch: SkipBranch
    guidance: float
    on_call: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._unet: nn.Module = self.painter.pipe.unet
        self._layout = layout_of(self._unet)
        self._patch = ShallowPatch(self._layout, self.branch)
        self._truth = [output_tensor(output) for output in self.recording.outputs]

    @torch.no_grad()
    def sensitivity(self) -> list[float]:
        """How far the images move with the prediction of each step: root mean square over root mean square.

        The prediction is moved as a shallow step moves it, since the U-Net undoes some errors and not others.
        """
        steps = len(self._truth)
        found = {}
        for step in steps_of_sensitivity(steps):
            full = max(0, step - 2)
            prediction = self._shallow(step, full, min(3, full))
            images = draw_from(self.painter, self.first, self.recording, step, prediction)
            moved = (images - self.recording.images).double().square().flatten(1).mean(1)
            wrong = self._guided(prediction - self._truth[step]).double().square().flatten(1).mean(1).cpu()
            found[step] = float((moved / wrong).clamp_min(1e-30).log().mean().exp().sqrt())
        return _interpolated(found, steps)

    @torch.no_grad()
    def measure(self, sensitivity: list[float]) -> torch.Tensor:
        """Mean square errors in the images, as far as they add up from the steps of a segment.

        Args:
            sensitivity: how far the images move with the prediction of each step.

        Returns:
            A tensor (steps, gaps, lengths, kinds, prompts). The entry [b, g, m, k, p] belongs to the full step b with m
            steps after it and prompt p: forecast from b and the full step g steps before it, or for g = 0 from b alone.
            The steps are shallow for k = 0, shallow with guidance reuse for k = 1, and skipped for k = 2, by the
            forecast `"response"` where that can be had. Impossible ones are infinite.
        """
        steps, longest = len(self._truth), longest_segment(len(self._truth))
        guided = self.recording.guided
        differences = [_difference(tensor) for tensor in self._truth] if guided else []
        errors = torch.full((steps, longest + 2, longest + 1, 3, len(self.recording.images)), torch.inf).double()
        for full in range(steps):
            gaps = [gap for gap in gaps_measured(steps) if gap <= full]
            for gap in [0, *gaps]:
                errors[full, gap, 0] = 0
                sums: list[torch.Tensor | float] = [0.0, 0.0, 0.0]
                predictions = self._predictions(full, gap) if self.recording.skipped else None
                for length in range(1, min(longest, steps - 1 - full) + 1):
                    step = full + length
                    output = self._shallow(step, full, gap)
                    wrong = {0: self._guided(output - self._truth[step])}
                    if guided:
                        difference = _continued(differences, full, gap, length) - differences[step]
                        conditional = (output - self._truth[step]).chunk(2)[1]
                        wrong[1] = conditional + (1 - self.guidance) * difference
                    if predictions is not None:
                        forecast = predictions.at(step, self._input(step), skipped_forecast(self.recording.skipped))
                        wrong[2] = self._guided(forecast - self._truth[step])
                    for kind, error in wrong.items():
                        sums[kind] = sums[kind] + sensitivity[step] * error.float()
                        squares = torch.as_tensor(sums[kind]).square().flatten(1).mean(1)
                        errors[full, gap, length, kind] = squares.double().cpu().nan_to_num(nan=torch.inf)
                    self.on_call()
            _fill_gaps(errors[full], gaps, full)
        return errors

    def _shallow(self, step: int, full: int, gap: int) -> torch.Tensor:
        """What a shallow step predicts from the true features of one or two full steps before it."""
        args, kwargs = self.recording.calls[step]
        args, kwargs = self._layout.narrow_call(self.branch, args, kwargs)
        self._patch.apply(_continued(self.recording.features, full, gap, step - full))
        try:
            return output_tensor(self._unet(*args, **kwargs))
        finally:
            self._patch.remove()

    def _predictions(self, full: int, gap: int) -> PredictionForecast:
        """What skipped steps go on from after one or two full steps."""
        scheduler = self.painter.pipe.scheduler
        config = getattr(scheduler, "config", {})
        response = float(config.get("prediction_type", "epsilon") == "epsilon")
        predictions = PredictionForecast(1, response, stiffness(self.guidance, scheduler, len(self._truth)))
        for step in (full - gap, full) if gap else (full,):
            predictions.add(step, self._input(step), self._truth[step])
        return predictions

    def _input(self, step: int) -> torch.Tensor:
        args, kwargs = self.recording.calls[step]
        return latents(self._unet, args[0] if args else kwargs["sample"])

    def _guided(self, prediction: torch.Tensor) -> torch.Tensor:
        """The prediction after guidance, which is linear: that of a difference is the difference."""
        if not self.recording.guided:
            return prediction
        unconditional, conditional = prediction.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)


def _continued(values: list[torch.Tensor], full: int, gap: int, length: int) -> torch.Tensor:
    """The forecast that many steps after a full step, from it and the one a gap before it."""
    if gap == 0:
        return values[full]
    return torch.lerp(values[full - gap], values[full], 1 + length / gap)


def _difference(prediction: torch.Tensor) -> torch.Tensor:
    unconditional, conditional = prediction.chunk(2)
    return unconditional - conditional


def _fill_gaps(errors: torch.Tensor, measured: list[int], full: int) -> None:
    """Interpolates between the gaps that were measured; beyond the last of them it stands for those that follow."""
    for gap in range(1, min(full, errors.shape[0] - 1) + 1):
        if gap not in measured:
            below = max(known for known in measured if known < gap)
            above = min((known for known in measured if known > gap), default=below)
            share = (gap - below) / (above - below) if above > below else 0.0
            errors[gap] = torch.lerp(errors[below], errors[above], share).nan_to_num(nan=torch.inf)


def _interpolated(known: dict[int, float], steps: int) -> list[float]:
    """A value for every step, by the logarithm between those that are known."""
    found = []
    for step in range(steps):
        below = max((at for at in known if at <= step), default=min(known))
        above = min((at for at in known if at >= step), default=max(known))
        share = (step - below) / (above - below) if above > below else 0.0
        found.append(known[below] ** (1 - share) * known[above] ** share)
    return found
