"""Pareto fronts of cost and value."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

__all__ = ["dominating", "pareto_front"]

T = TypeVar("T")

# Costs that are equal may differ in the last bits of a sum.
_EQUAL_COST = 1e-9


def pareto_front(items: Iterable[T], cost: Callable[[T], float], value: Callable[[T], float]) -> list[T]:
    """The items that no other item dominates, in their order; see `dominating`.

    Example:
        >>> pareto_front([(0.5, 50), (0.4, 52), (0.2, 40)], cost=lambda item: item[0], value=lambda item: item[1])
        [(0.4, 52), (0.2, 40)]
    """
    items = list(items)
    return [item for item in items if not dominating(item, items, cost, value)]


def dominating(item: T, items: Iterable[T], cost: Callable[[T], float], value: Callable[[T], float]) -> list[T]:
    """The items that dominate an item: they cost no more and have a higher value, or cost less and have the same value.

    Example:
        >>> dominating((0.5, 50), [(0.5, 50), (0.4, 52), (0.2, 40)], lambda item: item[0], lambda item: item[1])
        [(0.4, 52)]
    """
    found = []
    for other in items:
        dearer, better = cost(other) - cost(item), value(other) - value(item)
        if dearer < _EQUAL_COST and better >= 0 and (better > 0 or dearer < -_EQUAL_COST):
            found.append(other)
    return found
