"""What a setting gains over plain re-use at the same interval and branch, image by image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from DeepCache.bench.summary import paired
from DeepCache.bench.variants import variant_name
from DeepCache.config import DeepCacheConfig

__all__ = ["mark_over_reuse"]

_METRICS = ("psnr", "ssim")


def mark_over_reuse(cells: list[dict[str, Any]]) -> None:
    """Sets `over_reuse` of the cells of an ablation's group: the paired difference of PSNR and SSIM to re-use.

    The steps between full ones are of the same kind in both. It is None for re-use itself, fewer steps, plans and
    adaptive schedules, and where re-use at that interval and branch is not among the cells.

    Args:
        cells: each with `label`, `config`, `psnr` and `ssim`.

    Example:
        >>> from DeepCache.bench.summary import summary
        >>> from DeepCache.bench.variants import parse_variant
        >>> cells = [
        ...     {
        ...         "label": name,
        ...         "config": parse_variant(name).config.to_dict(),
        ...         "psnr": summary([psnr]),
        ...         "ssim": summary([0.5]),
        ...     }
        ...     for name, psnr in (("I=3 B=0", 30.0), ("I=3 B=0 linear", 32.0), ("I=5 B=0 linear", 28.0))
        ... ]
        >>> mark_over_reuse(cells)
        >>> [cell["over_reuse"] and cell["over_reuse"]["psnr"]["mean"] for cell in cells]
        [None, 2.0, None]
    """
    by_label = {cell["label"]: cell for cell in cells}
    for cell in cells:
        reuse = by_label.get(_label_of_reuse(cell["config"]))
        comparable = reuse is not None and reuse is not cell and all(cell[name] and reuse[name] for name in _METRICS)
        cell["over_reuse"] = _difference(cell, reuse) if reuse is not None and comparable else None


def _label_of_reuse(config: Mapping[str, Any] | None) -> str | None:
    if config is None or config["plan"] is not None or config["schedule"] is not None:
        return None
    if config["skip_mode"] == "adaptive":
        return None
    # Results of earlier versions name no kind of steps in between.
    between = config.get("between", "shallow")
    interval, branch = config["cache_interval"], config["cache_branch_id"]
    return variant_name(DeepCacheConfig(interval, branch, forecast="none", between=between))


def _difference(cell: Mapping[str, Any], reuse: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: paired(cell[name]["values"], reuse[name]["values"]) for name in _METRICS}
    return {"label": reuse["label"], **found}
