"""Forecasts of a tensor that is computed at some steps only, from its latest values.

DeepCache re-uses a deep feature unchanged, which is a polynomial of order 0 through its latest value. A polynomial
through the two or three latest values is closer to the truth where the run is smooth. Elsewhere, as at a high guidance
scale, it amplifies errors from one full step to the next, like any explicit multistep rule of a higher order (Hairer
and Wanner, *Solving Ordinary Differential Equations II*, section V.1). The limited forecast is a line whose slope is
bounded element by element by the slope before it, as slope limiters bound the reconstruction of a flow (van Leer,
*Towards the ultimate conservative difference scheme IV*, 1977): a line where the tensor keeps its direction, and re-use
where it turns. An explicit rule is stable while its step length times the stiffness of the problem is small, so the
bound is tighter the larger that product is.

The prediction of a step also depends on the input of that step, which is known. The `"response"` forecast re-uses the
latest prediction and adds its response to the change of the input: one number per sample, the least squares slope of
the last change of the prediction over that of the input (a secant approximation to the Jacobian by a multiple of the
identity; Barzilai and Borwein, *Two-point step size gradient methods*, 1988). It follows the input, so it does not
continue an error of the run as a line through past predictions does, and is safer at a high guidance scale. EasyCache's
rule, which re-uses prediction minus input, is the case in which that number is 1.
"""

from __future__ import annotations

from typing import Any

import torch

from DeepCache.engine.torch_versions import bytes_of
from DeepCache.schedule import FORECAST_ORDERS, ForecastRule

# How much steeper than the slope before it a limited slope may be. 2 is the bound of van Leer's limiter.
_STEEPER = 2.0
# The distance of two values times the stiffness at which that bound holds. Below it, only a part of the excess is
# removed; above it, the bound shrinks.
_STABLE = 0.4
# Assumed where neither the pipeline nor the caller provides a guidance scale or the number of steps.
_USUAL_GUIDANCE = 7.5
_USUAL_STEPS = 25


class Forecast:
    """The latest values of a tensor in Newton's form, which needs no even spacing.

    Of the latest value at x₂ and those before it at x₁ and x₀ it keeps the divided differences

        d₀ = y₂,  d₁ = (y₂ - y₁) / (x₂ - x₁),  d₂ = (d₁ - (y₁ - y₀) / (x₁ - x₀)) / (x₂ - x₀)

    and continues with d₀ + (x - x₂) d₁ + (x - x₂) (x - x₁) d₂ (`"quadratic"`), with fewer terms (`"linear"`, `"none"`),
    or with d₀ + (x - x₂) d (`"limited"`). With c = (stiffness (x₂ - x₁) / 0.4)³ and b the slope d₁ bounded by 2 /
    max(1, c) times the slope before it, and 0 where their signs differ, d goes from d₁ at c = 0 to b at c ≥ 1; while
    there is no slope before it, d is d₁ / max(1, c). With fewer values than a rule needs, the order is lower. All of it
    works element by element: no sums, so half precision is safe and no sample of a batch affects another.

    Args:
        order: how many differences are kept: 0, 1 or 2.
        stiffness: how strongly the run responds to an error, for each unit of distance; see `stiffness`.
    """

    def __init__(self, order: int, stiffness: float = 0.0) -> None:
        self._order = order
        self._stiffness = stiffness
        self._differences: list[torch.Tensor] = []
        self._places: list[float] = []
        self._limited: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        limited = [] if self._limited is None else [self._limited]
        return sum(bytes_of(tensor) for tensor in (*self._differences, *limited))

    @property
    def latest(self) -> float:
        """The place of the latest value."""
        return self._places[0]

    def add(self, place: float, value: torch.Tensor) -> None:
        """Adds a value at a place beyond the last one. The tensor is kept and must not change. If its shape, dtype or
        device is new, the values before it are dropped."""
        latest = self._differences[0] if self._differences else value
        if (latest.shape, latest.dtype, latest.device) != (value.shape, value.dtype, value.device):
            self._differences, self._places = [], []
        differences = [value]
        for lower, at in zip(self._differences[: self._order], self._places, strict=False):
            differences.append((differences[-1] - lower) / (place - at))
        self._places = [place, *self._places][: self._order + 1]
        self._differences = differences
        self._limited = None

    def at(self, place: float, rule: ForecastRule = "none", half: int | None = None) -> torch.Tensor:
        """The value at a place; by the rule `"none"` it is the latest tensor itself, which must not be changed. `half`
        is 0 or 1 for the first or the second half of the first dimension."""
        if rule == "limited" and len(self._differences) > 1:
            terms = [self._differences[0], self._limited_slope()]
        else:
            terms = self._differences[: 1 + FORECAST_ORDERS[rule]]
        if half is not None:
            terms = [term.chunk(2)[half] for term in terms]
        value, *slopes = terms
        factor = 1.0
        for at, slope in zip(self._places, slopes, strict=False):
            factor *= place - at
            value = torch.add(value, slope, alpha=factor)
        return value

    def _limited_slope(self) -> torch.Tensor:
        """The bounded slope, computed once for the steps up to the next value."""
        if self._limited is None:
            slope = self._differences[1]
            caution = (self._stiffness * (self._places[0] - self._places[1]) / _STABLE) ** 3
            if len(self._differences) > 2:
                before = slope - (self._places[0] - self._places[2]) * self._differences[2]
                bound = _STEEPER / max(caution, 1.0) * before
                bounded = slope.clamp(min=bound.clamp_max(0), max=bound.clamp_min(0))
                self._limited = bounded if caution >= 1 else torch.lerp(slope, bounded, caution)
            else:
                self._limited = slope / max(caution, 1.0)
        return self._limited


class PredictionForecast:
    """The latest predictions of a U-Net, continued at steps that run none of its layers.

    Args:
        order: how many differences are kept, see `Forecast`.
        response: the response of the prediction to the input, -1 to 1, until it is measured; None if no step uses the
            response, so that nothing is kept for it.
        stiffness: see `Forecast`.
    """

    def __init__(self, order: int, response: float | None, stiffness: float = 0.0) -> None:
        self._predictions = Forecast(order, stiffness)
        self._response: float | torch.Tensor | None = response
        self._sample: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        return self._predictions.bytes + (0 if self._sample is None else bytes_of(self._sample))

    def add(self, place: float, sample: torch.Tensor, prediction: torch.Tensor) -> None:
        """Adds a prediction and its input (the latents), at a place beyond the last one. Both are kept and must not
        change; their shapes must be equal if the response is used."""
        if self._response is not None:
            if sample.shape != prediction.shape:
                raise ValueError(
                    "forecast='response' requires a U-Net whose prediction has the shape of its latents, got "
                    f"{tuple(prediction.shape)} for {tuple(sample.shape)}. Use forecast='limited'"
                )
            if self._sample is not None:
                change = sample.float() - self._sample.float()
                self._response = _response(change, prediction.float() - self._predictions.at(place).float())
            self._sample = sample
        self._predictions.add(place, prediction)

    def at(self, place: float, sample: torch.Tensor, rule: ForecastRule) -> torch.Tensor:
        """The prediction at a step whose input is `sample`."""
        if rule != "response":
            return self._predictions.at(place, rule)
        assert self._response is not None
        assert self._sample is not None
        latest = self._predictions.at(place)
        # Under autocast predictions have another dtype than their inputs.
        return (latest + self._response * (sample - self._sample)).to(latest.dtype)


def _response(change: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """The least squares slope of the answer over the change, for each sample, from -1 to 1; both in float32."""
    sides = tuple(range(1, change.ndim))
    moved = change.square().sum(sides, keepdim=True)
    slope = (change * answer).sum(sides, keepdim=True) / moved.clamp_min(torch.finfo(torch.float32).tiny)
    return slope.clamp(-1, 1)


def stiffness(guidance: float | None, scheduler: Any, steps: int | None) -> float:
    """How much of an error of the prediction one step propagates, up to a factor that depends on the model.

    A step moves the latents by its share of the run times the prediction, and guidance multiplies the difference of the
    two halves. A solver of a higher order extrapolates past predictions, and their errors with them: the weights of
    two-step Adams-Bashforth, 3/2 and -1/2, add up to 2 in size, those of Euler's rule to 1. The guidance scale is 1
    without guidance; None for it or for the number of steps stands for the usual 7.5 and 25.
    """
    order: int = getattr(scheduler, "config", {}).get("solver_order", 1)
    scale = _USUAL_GUIDANCE if guidance is None else max(guidance, 1.0)
    return scale * (1 + order) / 2 / (steps or _USUAL_STEPS)
