"""Figures of an ablation that compare the cells of a group, and files of the older format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from DeepCache.bench.summary import paired, percentile_5
from DeepCache.bench.variants import variant_name
from DeepCache.config import DeepCacheConfig
from DeepCache.pareto import dominating

__all__ = ["guidance_in_words", "mark_front", "mark_over_reuse", "upgraded_ablation"]

_COMPARED = ("psnr", "ssim")
_SUMMARIES = ("psnr", "ssim", "lpips", "clip")


def guidance_in_words(guidance: float | None) -> str:
    """`, guidance 7.5`, the end of the name of a group; empty without a guidance scale."""
    return "" if guidance is None else f", guidance {str(guidance).removesuffix('.0')}"


def mark_front(cells: list[dict[str, Any]]) -> None:
    """Sets `front` and `dominated_by` of the cells of a group from their `mac_share` and `psnr`."""
    for cell in cells:
        better = dominating(cell, cells, lambda each: float(each["mac_share"]), _mean_psnr)
        cell |= {"front": not better, "dominated_by": None}
        if better:
            best = max(better, key=_mean_psnr)
            gain = paired(best["psnr"]["values"], cell["psnr"]["values"])
            cell["dominated_by"] = {
                "label": best["label"],
                "psnr_gain": gain["mean"],
                "confidence": gain["confidence"],
            }


def mark_over_reuse(cells: list[dict[str, Any]]) -> None:
    """Sets `over_reuse` of the cells of a group: the paired difference of PSNR and SSIM to plain re-use at the same
    interval and branch, with the same kind of steps between full ones.

    It is None for re-use itself, fewer steps, plans and adaptive schedules, and if that re-use is not in the group.
    """
    by_label = {cell["label"]: cell for cell in cells}
    for cell in cells:
        cell["over_reuse"] = None
        reuse = by_label.get(_label_of_reuse(cell["config"]))
        if reuse is not None and reuse is not cell and all(cell[name] and reuse[name] for name in _COMPARED):
            gains = {name: paired(cell[name]["values"], reuse[name]["values"]) for name in _COMPARED}
            cell["over_reuse"] = {"label": reuse["label"], **gains}


def upgraded_ablation(result: dict[str, Any]) -> dict[str, Any]:
    """A result of format 1, which has one guidance scale, with the keys of format 2.

    Percentiles and differences to re-use are computed from the values in the file. No image was judged.
    """
    settings = dict(result["settings"])
    guidance = settings.pop("guidance")
    groups = []
    for group in result["groups"]:
        cells = [_upgraded(cell) for cell in group["cells"]]
        mark_over_reuse(cells)
        reference = group["reference"] and _upgraded(group["reference"])
        groups.append(group | {"reference": reference, "cells": cells, "guidance": guidance})
    return result | {"settings": settings | {"guidances": [guidance]}, "groups": groups}


def _mean_psnr(cell: Mapping[str, Any]) -> float:
    return float(cell["psnr"]["mean"])


def _label_of_reuse(config: Mapping[str, Any] | None) -> str | None:
    if config is None or config["plan"] is not None or config["schedule"] is not None:
        return None
    if config["skip_mode"] == "adaptive":
        return None
    # Results of earlier versions have no kind of steps between full ones.
    between = config.get("between", "shallow")
    interval, branch = config["cache_interval"], config["cache_branch_id"]
    return variant_name(DeepCacheConfig(interval, branch, forecast="none", between=between))


def _upgraded(measured: dict[str, Any]) -> dict[str, Any]:
    summaries = {name: measured[name] for name in _SUMMARIES if measured.get(name) is not None}
    percentiles = {name: found | {"p5": percentile_5(found["values"])} for name, found in summaries.items()}
    return measured | percentiles | {"right": None}
