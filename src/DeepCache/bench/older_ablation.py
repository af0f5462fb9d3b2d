"""Ablations of format 1, which had one guidance scale for all groups, as the current format has them."""

from __future__ import annotations

from typing import Any

from DeepCache.bench.over_reuse import mark_over_reuse
from DeepCache.bench.summary import percentile_5

__all__ = ["OLDER_ABLATION_FORMAT", "upgraded_ablation"]

OLDER_ABLATION_FORMAT = "DeepCache ablation 1"
"""The `format` in result files of DeepCache 0.2 and before."""

_METRICS = ("psnr", "ssim", "lpips", "clip")


def upgraded_ablation(result: dict[str, Any]) -> dict[str, Any]:
    """The result with the keys of the current format; its `format` is left as it is.

    Percentiles and differences to re-use are computed from the values in the file. Nothing was judged.

    Args:
        result: a result that is as the schema of format 1 says.
    """
    settings = dict(result["settings"])
    guidance = settings.pop("guidance")
    return result | {
        "settings": settings | {"guidances": [guidance]},
        "groups": [_group(group) | {"guidance": guidance} for group in result["groups"]],
    }


def _group(group: dict[str, Any]) -> dict[str, Any]:
    cells = [_measured(cell) for cell in group["cells"]]
    mark_over_reuse(cells)
    return group | {"reference": group["reference"] and _measured(group["reference"]), "cells": cells}


def _measured(one: dict[str, Any]) -> dict[str, Any]:
    summaries = {name: one[name] for name in _METRICS if one.get(name) is not None}
    percentiles = {name: found | {"p5": percentile_5(found["values"])} for name, found in summaries.items()}
    return one | percentiles | {"right": None}
