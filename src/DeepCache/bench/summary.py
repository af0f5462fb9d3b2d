"""Values of many images in short."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, quantiles, stdev
from typing import Any

__all__ = ["confidence", "paired", "percentile_5", "summary"]


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, its 95 % confidence interval, the 5th percentile, and every value.

    Example:
        >>> found = summary([40.0, 42.0])
        >>> found["mean"], found["p5"]
        (41.0, 40.1)
    """
    rounded = [round(value, 5) for value in values]
    return {
        "mean": fmean(rounded),
        "confidence": confidence(rounded),
        "p5": percentile_5(rounded),
        "values": rounded,
    }


def confidence(values: Sequence[float]) -> list[float]:
    """The 95 % confidence interval of the mean (normal).

    Example:
        >>> confidence([41.0])
        [41.0, 41.0]
    """
    mean = fmean(values)
    margin = 1.96 * stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0
    return [mean - margin, mean + margin]


def percentile_5(values: Sequence[float]) -> float:
    """The 5th percentile, interpolated linearly between the two nearest values as `numpy.percentile` does by default.

    Example:
        >>> percentile_5([30.0, 50.0, 40.0])
        31.0
    """
    return quantiles(values, n=20, method="inclusive")[0] if len(values) > 1 else values[0]


def paired(one: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """By how much values are above others of the same images: the mean difference and its 95 % confidence interval.

    Images differ from each other far more than settings do, so the interval of the differences is much narrower than
    those of the two means.

    Args:
        one: a value for each image.
        other: a value for each of the same images.

    Raises:
        ValueError: they are not equally many.

    Example:
        >>> paired([42.0, 32.0], [41.0, 31.0])
        {'mean': 1.0, 'confidence': [1.0, 1.0]}
    """
    gains = [value - against for value, against in zip(one, other, strict=True)]
    return {"mean": fmean(gains), "confidence": confidence(gains)}
