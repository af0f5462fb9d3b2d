"""How numbers are written in a report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["confidence", "decibels", "gain", "of_range", "per_cent", "seconds", "size", "times"]


def seconds(value: float) -> str:
    """Seconds with two decimals, of less than one three significant digits.

    Example:
        >>> seconds(101.95), seconds(6.881), seconds(0.24666), seconds(0.0123)
        ('101.95', '6.88', '0.247', '0.0123')
    """
    if value >= 1 or value <= 0:
        return f"{value:.2f}"
    return f"{value:.{2 - math.floor(math.log10(value))}f}"


def times(value: float) -> str:
    """A ratio.

    Example:
        >>> times(2.3196)
        '2.32×'
    """
    return f"{value:.2f}×"


def per_cent(value: float) -> str:
    """A share, with a blank that no line breaks at.

    Example:
        >>> per_cent(0.4163).split(), per_cent(1.0).split()
        (['41.6', '%'], ['100', '%'])
    """
    return "100\xa0%" if value == 1 else f"{100 * value:.1f}\xa0%"


def decibels(value: float) -> str:
    """PSNR, in dB without the unit.

    Example:
        >>> decibels(31.256)
        '31.26'
    """
    return f"{value:.2f}"


def confidence(metric: dict[str, object], digits: int) -> str:
    """The mean of a metric and half the width of its 95 % confidence interval.

    Example:
        >>> confidence({"mean": 31.256, "confidence": [30.0, 32.5]}, 2)
        '31.26 ± 1.25'
    """
    low, high = metric["confidence"]  # type: ignore[misc]
    return f"{metric['mean']:.{digits}f} ± {(high - low) / 2:.{digits}f}"  # type: ignore[has-type]


def gain(paired: Mapping[str, Any], digits: int) -> str:
    """A mean difference with its sign, and half the width of its 95 % confidence interval.

    Example:
        >>> gain({"mean": 1.256, "confidence": [1.0, 1.5]}, 2)
        '+1.26 ± 0.25'
    """
    low, high = paired["confidence"]
    return f"{paired['mean']:+.{digits}f} ± {(high - low) / 2:.{digits}f}"


def of_range(low_and_high: list[float], unit: str = "") -> str:
    """The two ends of a range.

    Example:
        >>> of_range([2.27, 2.339], "×"), of_range([0.2423, 0.251])
        ('2.27× to 2.34×', '0.242 to 0.251')
    """
    low, high = (times(end) if unit == "×" else seconds(end) + unit for end in low_and_high)
    return f"{low} to {high}"


def size(width: int, height: int) -> str:
    """The size of a picture: one number for a square.

    Example:
        >>> size(512, 512), size(512, 768)
        ('512', '512×768')
    """
    return str(width) if width == height else f"{width}×{height}"
