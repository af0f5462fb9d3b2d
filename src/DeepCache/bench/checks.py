"""Checks of the settings of benchmarks and ablations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["check_lists", "check_minimum"]


def check_lists(settings: Any, nonempty: Iterable[str], distinct: Iterable[str]) -> None:
    """Raises `ValueError` if a list of these names is empty or has equal values."""
    for name in nonempty:
        if not getattr(settings, name):
            raise ValueError(f"{name} must have at least one value, got none")
    for name in distinct:
        values = getattr(settings, name)
        if len(set(values)) < len(values):
            raise ValueError(f"{name} must differ from each other, got {', '.join(map(_short, values))}")


def check_minimum(name: str, values: Iterable[int], minimum: int) -> None:
    """Raises `ValueError` if a value is below the minimum."""
    for value in values:
        if value < minimum:
            raise ValueError(f"{name} must be {minimum} or more, got {value}")


def _short(value: Any) -> str:
    return str(getattr(value, "name", value))
