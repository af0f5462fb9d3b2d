"""Measures the errors of the steps between two full steps, for every position and length of such a segment.

A segment is a full step and the shallow or skipped steps after it, up to the next full step. Its error depends on its
position and length, and on the full step before it, which gives a forecast its direction. Everything is measured along
one recorded run without DeepCache: a shallow step gets the true input and the forecast of the true features, so that a
measurement takes one shallow step; a skipped step gets the true input and the predictions of true full steps, and runs
nothing. So errors that grow in a run, as those of a linear forecast at a high guidance scale, are not seen. How much a
wrong prediction at a step changes the images is measured at some steps by continuing the run from there. The error of a
whole schedule is the sum over its segments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from DeepCache.engine.attention import may_write
from DeepCache.engine.forecast import PredictionForecast, stiffness
from DeepCache.engine.guidance import latents, output_tensor, why_not_two_halves, with_tensor
from DeepCache.engine.layouts import SkipBranch, layout_of
from DeepCache.engine.patch import FeatureCapture, ShallowPatch
from DeepCache.generation.batch_sampler import BatchSampler
from DeepCache.generation.finite import check_finite
from DeepCache.schedule import FORECASTS, ForecastRule

__all__ = [
    "Recording",
    "SegmentErrors",
    "continue_from",
    "gaps_measured",
    "longest_segment",
    "reads_attention",
    "record",
    "skipped_forecast",
    "steps_of_sensitivity",
]


@dataclass(frozen=True)
class Recording:
    """A run of one batch without DeepCache: the arguments, output and deep feature of every U-Net call, whether the
    batch has two halves for guidance, and the forecasts that skipped steps can have (none if the pipeline reads what
    attention layers write)."""

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    outputs: list[Any]
    features: list[torch.Tensor]
    guided: bool
    skipped: tuple[ForecastRule, ...]
    images: torch.Tensor


def record(sampler: BatchSampler, first: int, branch: SkipBranch) -> Recording:
    """Generates and records the batch that starts with a prompt, with the deep feature at a skip branch."""
    unet = sampler.pipe.unet
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    outputs: list[Any] = []
    features: list[torch.Tensor] = []
    capture = FeatureCapture()
    capture.open = True
    attention = False

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal attention
        if not calls:
            attention = reads_attention(unet)
        calls.append((args, dict(kwargs)))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        outputs.append(output)
        feature = capture.take()
        assert feature is not None
        features.append(feature)

    handles = [module.register_forward_hook(capture, with_kwargs=True) for module in layout_of(unet).tapped(branch)]
    handles += [unet.register_forward_pre_hook(before, with_kwargs=True), unet.register_forward_hook(after)]
    try:
        images = sampler.sample_batch(first)
    finally:
        for handle in handles:
            handle.remove()
    check_finite(images, "the model without DeepCache")
    args, kwargs = calls[0]
    sample = args[0] if args else kwargs["sample"]
    guided = not why_not_two_halves(sampler.pipe, unet, sample)
    # The response is that of a prediction to an input of its shape.
    like_input = latents(unet, sample).shape == output_tensor(outputs[0]).shape
    skipped = () if attention else tuple(name for name in FORECASTS if like_input or name != "response")
    return Recording(calls, outputs, features, guided, skipped, images)


def reads_attention(unet: nn.Module) -> bool:
    """Whether the pipeline reads what attention layers write, so that no step can be skipped; known when the U-Net is
    called, since pipelines set their attention processors before."""
    return any(may_write(layer) for layer in unet.modules() if hasattr(layer, "processor"))


def continue_from(
    sampler: BatchSampler, first: int, recording: Recording, number: int, prediction: torch.Tensor
) -> torch.Tensor:
    """The images of a recorded batch with another prediction at one step. The steps before it are played back."""
    unet = sampler.pipe.unet
    played = [*recording.outputs[:number], with_tensor(recording.outputs[number], prediction)]
    forward, calls = unet.forward, iter(played)

    def play(*args: Any, **kwargs: Any) -> Any:
        return next(calls, None) or forward(*args, **kwargs)

    before = unet.__dict__.get("forward")
    unet.forward = play
    try:
        return sampler.sample_batch(first)
    finally:
        if before is None:
            del unet.forward
        else:
            unet.forward = before


def longest_segment(steps: int) -> int:
    """The most steps between two full ones that are measured."""
    return max(1, min(12, steps // 3))


def gaps_measured(steps: int) -> list[int]:
    """Distances of two full steps at which forecasts are measured; errors in between are interpolated."""
    longest = longest_segment(steps) + 1
    return sorted({gap for gap in (1, 2, 4, 8) if gap < longest} | {longest})


def skipped_forecast(allowed: Sequence[ForecastRule]) -> ForecastRule:
    """The forecast of the skipped steps that are measured: the one that carries the least error on."""
    return "response" if "response" in allowed else "limited"


def steps_of_sensitivity(steps: int) -> list[int]:
    """Steps from which runs are continued. They are denser towards the end, where the sensitivity changes more from
    step to step and a run is shorter."""
    distances = [1]
    while distances[-1] < steps - 1:
        distances.append(min(steps - 1, max(distances[-1] + 1, round(distances[-1] * 1.35))))
    return [steps - distance for distance in reversed(distances)]


@dataclass
class SegmentErrors:
    """Measures the segments of a recorded batch, which starts with the prompt `first`; `on_call` is called after every
    shallow step."""

    sampler: BatchSampler
    first: int
    recording: Recording
    branch: SkipBranch
    guidance: float
    on_call: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._unet: nn.Module = self.sampler.pipe.unet
        self._layout = layout_of(self._unet)
        self._patch = ShallowPatch(self._layout, self.branch)
        self._truth = [output_tensor(output) for output in self.recording.outputs]

    @torch.no_grad()
    def sensitivity(self) -> list[float]:
        """The change of the images per error of the prediction at each step, both as root mean squares.

        The error is that of a shallow step, since the U-Net corrects some errors and not others.
        """
        steps = len(self._truth)
        found = {}
        for step in steps_of_sensitivity(steps):
            full = max(0, step - 2)
            prediction = self._shallow(step, full, min(3, full))
            images = continue_from(self.sampler, self.first, self.recording, step, prediction)
            moved = (images - self.recording.images).double().square().flatten(1).mean(1)
            wrong = self._guided(prediction - self._truth[step]).double().square().flatten(1).mean(1).cpu()
            found[step] = float((moved / wrong).clamp_min(1e-30).log().mean().exp().sqrt())
        return _interpolated(found, steps)

    @torch.no_grad()
    def measure(self, sensitivity: list[float]) -> torch.Tensor:
        """Mean square errors in the images, added up over the steps of a segment.

        Args:
            sensitivity: the change of the images per error at each step.

        Returns:
            A tensor (steps, gaps, lengths, kinds, prompts). The entry [b, g, m, k, p] belongs to the full step b with m
            steps after it and prompt p, with a forecast from b and the full step g steps before it, or from b alone for
            g = 0. The steps are shallow for k = 0, shallow with guidance reuse for k = 1, and skipped for k = 2, with
            the forecast `"response"` if possible. Impossible ones are infinite.
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
                        difference = _extrapolated(differences, full, gap, length) - differences[step]
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
        """The prediction of a shallow step from the true features of one or two full steps before it."""
        args, kwargs = self.recording.calls[step]
        args, kwargs = self._layout.narrow_call(self.branch, args, kwargs)
        self._patch.apply(_extrapolated(self.recording.features, full, gap, step - full))
        try:
            return output_tensor(self._unet(*args, **kwargs))
        finally:
            self._patch.remove()

    def _predictions(self, full: int, gap: int) -> PredictionForecast:
        """The forecast of skipped steps after one or two full steps."""
        scheduler = self.sampler.pipe.scheduler
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
        """The prediction, or a difference of predictions, after guidance, which is linear."""
        if not self.recording.guided:
            return prediction
        unconditional, conditional = prediction.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)


def _extrapolated(values: list[torch.Tensor], full: int, gap: int, length: int) -> torch.Tensor:
    """The forecast that many steps after a full step, from it and the one a gap before it."""
    if gap == 0:
        return values[full]
    return torch.lerp(values[full - gap], values[full], 1 + length / gap)


def _difference(prediction: torch.Tensor) -> torch.Tensor:
    unconditional, conditional = prediction.chunk(2)
    return unconditional - conditional


def _fill_gaps(errors: torch.Tensor, measured: list[int], full: int) -> None:
    """Interpolates between the measured gaps; gaps beyond the last one get its errors."""
    for gap in range(1, min(full, errors.shape[0] - 1) + 1):
        if gap not in measured:
            below = max(known for known in measured if known < gap)
            above = min((known for known in measured if known > gap), default=below)
            share = (gap - below) / (above - below) if above > below else 0.0
            errors[gap] = torch.lerp(errors[below], errors[above], share).nan_to_num(nan=torch.inf)


def _interpolated(known: dict[int, float], steps: int) -> list[float]:
    """A value for every step, geometrically interpolated between those that are known."""
    found = []
    for step in range(steps):
        below = max((at for at in known if at <= step), default=min(known))
        above = min((at for at in known if at >= step), default=max(known))
        share = (step - below) / (above - below) if above > below else 0.0
        found.append(known[below] ** (1 - share) * known[above] ** share)
    return found
