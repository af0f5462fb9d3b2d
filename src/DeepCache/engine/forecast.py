"""Forecasts of a tensor that is computed at some steps only, from its latest values.

DeepCache re-uses a deep feature as it is, which is a polynomial of order 0 through its latest value. A polynomial
through the two or three latest values is closer to the truth where the run is smooth. Where it is not, as at a high
guidance scale, such a polynomial amplifies errors from one full step to the next, like any explicit multistep rule of
a higher order (Hairer and Wanner, *Solving Ordinary Differential Equations II*, section V.1). The limited forecast is
a line whose slope is bounded element by element by the slope before it, as slope limiters bound the reconstruction of
a flow (van Leer, *Towards the ultimate conservative difference scheme IV*, 1977): a line where the tensor goes on as
it did, and re-use where it turns. An explicit rule is stable while the length of its steps times the stiffness of what
it follows is small, so the bound is tighter the larger that product is: the features themselves do not show how the run
will answer to an error.
"""

from __future__ import annotations

import torch

from DeepCache.engine.torch_versions import bytes_of
from DeepCache.schedule import FORECAST_ORDERS, ForecastRule

__all__ = ["Forecast"]

# How much steeper than the slope before it a limited slope may be. 2 is the bound of van Leer's limiter.
_STEEPER = 2.0
# The distance of two values times the stiffness at which that bound holds. Below it a part of what it cuts off is let
# through, beyond it the bound shrinks.
_STABLE = 0.4


class Forecast:
    """The latest values of a tensor in Newton's form, which needs no even spacing.

    Of the latest value at x₂ and those before it at x₁ and x₀ it keeps the divided differences

        d₀ = y₂,  d₁ = (y₂ - y₁) / (x₂ - x₁),  d₂ = (d₁ - (y₁ - y₀) / (x₁ - x₀)) / (x₂ - x₀)

    and continues with d₀ + (x - x₂) d₁ + (x - x₂) (x - x₁) d₂ (`"quadratic"`), with less of it (`"linear"`, `"none"`),
    or with d₀ + (x - x₂) d (`"limited"`). With c = (stiffness (x₂ - x₁) / 0.4)³ and b the slope d₁ bounded by 2 /
    max(1, c) times the slope before it, and 0 where their signs differ, d goes from d₁ at c = 0 to b at c = 1 and
    beyond; while there is no slope before it, it is d₁ / max(1, c). While there are fewer values than a rule takes, the
    order is lower. All of it works element by element: no sums, so half precision is safe and no sample of a batch
    reaches another.

    Args:
        order: how many differences are kept: 0, 1 or 2.
        stiffness: how strongly the run answers to an error, for each unit of distance; see `stiffness`.

    Example:
        >>> forecast = Forecast(order=2, stiffness=0.2)
        >>> forecast.add(0, torch.tensor([3.0, 3.0]))
        >>> forecast.at(5, "limited")
        tensor([3., 3.])
        >>> forecast.add(2, torch.tensor([4.0, 4.0]))
        >>> forecast.at(3, "limited")
        tensor([4.5000, 4.5000])
        >>> forecast.add(4, torch.tensor([5.0, 2.0]))
        >>> forecast.at(5, "linear"), forecast.at(5, "limited")
        (tensor([5.5000, 1.0000]), tensor([5.5000, 2.0000]))
    """

    def __init__(self, order: int, stiffness: float = 0.0) -> None:
        self._order = order
        self._stiffness = stiffness
        self._differences: list[torch.Tensor] = []
        self._places: list[float] = []
        self._limited: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        """Size of what is kept."""
        limited = [] if self._limited is None else [self._limited]
        return sum(bytes_of(tensor) for tensor in (*self._differences, *limited))

    @property
    def latest(self) -> float:
        """The place of the latest value; there is one."""
        return self._places[0]

    def add(self, place: float, value: torch.Tensor) -> None:
        """Takes a further value, at a place beyond that of the last one.

        The tensor is kept and must not change. Where its shape, dtype or device is new, the values before it are
        dropped."""
        latest = self._differences[0] if self._differences else value
        if (latest.shape, latest.dtype, latest.device) != (value.shape, value.dtype, value.device):
            self._differences, self._places = [], []
        differences = [value]
        for order, (lower, at) in enumerate(zip(self._differences, self._places, strict=True), start=1):
            if order > self._order:
                break
            differences.append((differences[-1] - lower) / (place - at))
        self._places = [place, *self._places][: self._order + 1]
        self._differences = differences
        self._limited = None

    def at(self, place: float, rule: ForecastRule = "none", half: int | None = None) -> torch.Tensor:
        """The value at a place; by the rule `"none"` it is the latest tensor itself, which must not be changed.

        Args:
            place: where.
            rule: one of `FORECASTS`, but for `"response"`.
            half: 0 or 1 for the first or the second half of the tensor's first side alone.
        """
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
