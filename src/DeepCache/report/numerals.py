"""How numbers are written in a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = [
    "DASH",
    "confidence",
    "decibels",
    "gain",
    "of_range",
    "or_dash",
    "per_cent",
    "seconds",
    "size",
    "times",
]

DASH = "–"
"""Replaces a missing number."""


def seconds(value: float) -> str:
    """Seconds with two decimals; below one second, three significant digits.

    Example:
        >>> seconds(101.95), seconds(6.881), seconds(0.24666), seconds(0.0123)
        ('101.95', '6.88', '0.247', '0.0123')
    """
    if value >= 1 or value <= 0:
        return f"{value:.2f}"
    return f"{value:.{2 - math.floor(math.log10(value))}f}"


def times(value: float) -> str:
    """A ratio, such as `2.32×`."""
    return f"{value:.2f}×"


def per_cent(value: float) -> str:
    """A share, with a no-break space.

    Example:
        >>> per_cent(0.4163).split(), per_cent(1.0).split()
        (['41.6', '%'], ['100', '%'])
    """
    return "100\xa0%" if value == 1 else f"{100 * value:.1f}\xa0%"


def decibels(value: float) -> str:
    """PSNR in dB, without the unit."""
    return f"{value:.2f}"


def confidence(metric: Mapping[str, Any], digits: int) -> str:
    """The mean of a metric and half the width of its 95 % confidence interval.

    Example:
        >>> confidence({"mean": 31.256, "confidence": [30.0, 32.5]}, 2)
        '31.26 ± 1.25'
    """
    low, high = metric["confidence"]
    return f"{metric['mean']:.{digits}f} ± {(high - low) / 2:.{digits}f}"


def gain(paired: Mapping[str, Any], digits: int) -> str:
    """As `confidence`, for a difference: with its sign."""
    sign = "+" if paired["mean"] >= 0 else ""
    return sign + confidence(paired, digits)


def of_range(low_and_high: Sequence[float], write: Callable[[float], str]) -> str:
    """The two ends of a range.

    Example:
        >>> of_range([2.27, 2.339], times)
        '2.27× to 2.34×'
    """
    low, high = map(write, low_and_high)
    return f"{low} to {high}"


def size(width: int, height: int) -> str:
    """The size of an image: one number for a square.

    Example:
        >>> size(512, 512), size(512, 768)
        ('512', '512×768')
    """
    return str(width) if width == height else f"{width}×{height}"


def or_dash(write: Callable[..., str]) -> Callable[..., str]:
    """The same function, with a dash for None."""
    return lambda value, *how: DASH if value is None else write(value, *how)
