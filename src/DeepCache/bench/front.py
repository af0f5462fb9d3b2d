"""The Pareto front: which settings no other beats in both cost and fidelity."""

from __future__ import annotations

from typing import Any

from DeepCache.bench.summary import paired

__all__ = ["mark_front"]


def mark_front(cells: list[dict[str, Any]]) -> None:
    """Sets `front` and `dominated_by` of the cells of an ablation's group, which are compared with the same images.

    A cell is dominated by another that costs no more and whose mean PSNR is higher, or that costs less and is as near.

    Args:
        cells: each with `label`, `mac_share` and `psnr`.

    Example:
        >>> cells = [
        ...     {"label": label, "mac_share": share, "psnr": {"mean": psnr, "values": [psnr]}}
        ...     for label, share, psnr in (("a", 0.5, 50.0), ("b", 0.4, 52.0), ("c", 0.2, 40.0))
        ... ]
        >>> mark_front(cells)
        >>> [cell["front"] for cell in cells], cells[0]["dominated_by"]["label"]
        ([False, True, True], 'b')
    """
    for cell in cells:
        better = [other for other in cells if _beats(other, cell)]
        cell["front"] = not better
        cell["dominated_by"] = _gain(max(better, key=_mean_psnr), cell) if better else None


def _beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
    # Two ways of the same cost differ in the last bits of a sum.
    dearer = one["mac_share"] - other["mac_share"]
    nearer = _mean_psnr(one) - _mean_psnr(other)
    return bool(dearer < 1e-9 and nearer >= 0 and (nearer > 0 or dearer < -1e-9))


def _mean_psnr(cell: dict[str, Any]) -> float:
    return float(cell["psnr"]["mean"])


def _gain(better: dict[str, Any], cell: dict[str, Any]) -> dict[str, Any]:
    gain = paired(better["psnr"]["values"], cell["psnr"]["values"])
    return {"label": better["label"], "psnr_gain": gain["mean"], "confidence": gain["confidence"]}
