"""Forecasting: continues a tensor that is computed at some steps only.

DeepCache re-uses a deep feature as it is, which is a polynomial of order 0 through its latest value. One through the
two or three latest values comes nearer at the same cost.
"""

from __future__ import annotations

import torch

__all__ = ["Forecast"]


class Forecast:
    """The polynomial through the latest values of a tensor, in Newton's form, which asks for no even spacing.

    Of the latest value at x₂ and those before it at x₁ and x₀ it keeps the divided differences

        d₀ = y₂,  d₁ = (y₂ - y₁) / (x₂ - x₁),  d₂ = (d₁ - (y₁ - y₀) / (x₁ - x₀)) / (x₂ - x₀)

    and continues with d₀ + (x - x₂) d₁ + (x - x₂) (x - x₁) d₂. That is one tensor more for each order, and one fused
    operation more for each order where it is asked for. While there are fewer values than an order takes, the order is
    lower.

    Args:
        order: the highest order; 0 keeps the latest value alone.

    Example:
        >>> forecast = Forecast(order=1)
        >>> forecast.add(0, torch.tensor(3.0))
        >>> forecast.at(5)
        tensor(3.)
        >>> forecast.add(2, torch.tensor(4.0))
        >>> forecast.at(5)
        tensor(5.5000)
    """

    def __init__(self, order: int) -> None:
        self._order = order
        self._differences: list[torch.Tensor] = []
        self._places: list[float] = []

    @property
    def bytes(self) -> int:
        """Size of what is kept."""
        return sum(difference.nbytes for difference in self._differences)

    def add(self, place: float, value: torch.Tensor) -> None:
        """Takes a further value, at a place beyond that of the last one. The tensor is kept and must not change."""
        differences = [value]
        for order, (lower, at) in enumerate(zip(self._differences, self._places, strict=True), start=1):
            if order > self._order:
                break
            differences.append((differences[-1] - lower) / (place - at))
        self._places = [place, *self._places][: self._order + 1]
        self._differences = differences

    def at(self, place: float, order: int | None = None, half: int | None = None) -> torch.Tensor:
        """The value at a place; of order 0 it is the latest tensor itself, which must not be changed.

        Args:
            place: where.
            order: a lower order than the highest.
            half: 0 or 1 for the first or the second half of the tensor's first side alone.
        """
        differences = self._differences[: None if order is None else order + 1]
        if half is not None:
            differences = [difference.chunk(2)[half] for difference in differences]
        value, *differences = differences
        factor = 1.0
        for at, difference in zip(self._places, differences, strict=False):
            factor *= place - at
            value = torch.add(value, difference, alpha=factor)
        return value
