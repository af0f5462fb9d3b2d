"""Values of many images in short."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import Any

__all__ = ["confidence", "summary"]


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, its 95 % confidence interval, and every value.

    Example:
        >>> summary([40.0, 42.0])["mean"]
        41.0
    """
    rounded = [round(value, 5) for value in values]
    return {"mean": fmean(rounded), "confidence": confidence(rounded), "values": rounded}


def confidence(values: Sequence[float]) -> list[float]:
    """The 95 % confidence interval of the mean (normal).

    Example:
        >>> confidence([41.0])
        [41.0, 41.0]
    """
    mean = fmean(values)
    margin = 1.96 * stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0
    return [mean - margin, mean + margin]
