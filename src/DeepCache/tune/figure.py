"""The frontier of a tuning as a picture: fidelity against cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from DeepCache.plan import Plan

__all__ = ["draw_frontier"]

# Okabe and Ito's colours, which people who see few colours tell apart; a dotted line is that of guidance reuse.
_COLOURS = {
    "none": "#999999",
    "linear": "#0072b2",
    "quadratic": "#56b4e9",
    "limited": "#009e73",
    "skipped, limited": "#cc79a7",
    "skipped, response": "#f0e442",
}
_FEWER, _TUNED = "#e69f00", "#d55e00"
_REUSE = ", guidance reuse"


def draw_frontier(plan: Plan, path: str | Path) -> None:
    """Draws what a tuning measured on its prompts: tuned schedules, uniform ones of every kind, fewer
    steps; and the plan on held-out prompts. Where it was tuned at several guidance scales, these are the means.

    Args:
        plan: a plan that `tune` made.
        path: a PNG or SVG file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing the frontier takes matplotlib: pip install 'DeepCache[tune]'") from error

    frontier = plan.results["frontier"]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for each in frontier["uniform"]:
        kinds.setdefault(each["name"].partition(", ")[2], []).append(each)
    for kind, points in kinds.items():
        colour = _COLOURS[kind.removesuffix(_REUSE)]
        style = "o:" if kind.endswith(_REUSE) else "o-"
        axes.plot(*_curve(points), style, color=colour, label=f"uniform, {kind}", markersize=4)
    axes.plot(*_curve(frontier["fewer_steps"]), "s--", color=_FEWER, label="fewer steps", markersize=4)
    axes.plot(*_curve(_best(frontier["tuned"])), "o-", color=_TUNED, label="tuned", markersize=4)
    measured, unseen = plan.results["tuning"]["measured"], plan.results["held_out"]["measured"]
    axes.plot(measured["cost"], measured["psnr"], "*", color=_TUNED, markersize=16, label="the plan")
    axes.plot(unseen["cost"], unseen["psnr"], "D", color="black", markersize=6, label="the plan, held-out prompts")
    axes.set_xlabel("multiply-accumulates of the U-Net, share of those without DeepCache")
    axes.set_ylabel("PSNR against no caching, dB")
    tuned = plan.tuned
    title = f"{tuned['model']}, {plan.scheduler['class']}, {tuned['steps']} steps"
    scales = [scale["guidance"] for scale in plan.results["held_out"]["scales"] if scale["guidance"] is not None]
    if scales:
        title += f", guidance {' and '.join(f'{scale:g}' for scale in scales)}"
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def _curve(points: list[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    ordered = sorted(points, key=lambda point: (point["cost"], point["psnr"]))
    return [point["cost"] for point in ordered], [point["psnr"] for point in ordered]


def _best(points: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that no other beats in both."""
    return [
        point
        for point in points
        if not any(other["cost"] <= point["cost"] and other["psnr"] > point["psnr"] for other in points)
    ]
