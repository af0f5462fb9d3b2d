"""Statistics over the images of a setting."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, quantiles, stdev
from typing import Any

__all__ = ["confidence", "paired", "percentile_5", "summary"]


def summary(values: Sequence[float]) -> dict[str, Any]:
    """The mean, its 95 % confidence interval, the 5th percentile, and every value."""
    rounded = [round(value, 5) for value in values]
    figures = {"mean": fmean(rounded), "confidence": confidence(rounded), "p5": percentile_5(rounded)}
    return figures | {"values": rounded}


def confidence(values: Sequence[float]) -> list[float]:
    """The 95 % confidence interval of the mean (normal)."""
    mean = fmean(values)
    margin = 1.96 * stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0
    return [mean - margin, mean + margin]


def percentile_5(values: Sequence[float]) -> float:
    """The 5th percentile, interpolated linearly like the default of `numpy.percentile`."""
    return quantiles(values, n=20, method="inclusive")[0] if len(values) > 1 else values[0]


def paired(one: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """The mean difference of two lists of values for the same images, and its 95 % confidence interval.

    Images differ from each other far more than settings do, so this interval is much narrower than those of the means.
    """
    gains = [value - against for value, against in zip(one, other, strict=True)]
    return {"mean": fmean(gains), "confidence": confidence(gains)}
