"""The plot of a tuning: fidelity against cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from DeepCache.pareto import pareto_front
from DeepCache.plan import Plan

__all__ = ["plot_frontier"]

# Okabe and Ito's palette, which is safe for colour vision deficiencies; dotted lines have guidance reuse.
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


def plot_frontier(plan: Plan, path: str | Path) -> None:
    """Plots the measurements of a tuning on its prompts (tuned schedules, uniform ones of every kind, fewer steps) and
    the plan on held-out prompts. With several guidance scales these are means.

    Args:
        plan: a plan made by `tune`.
        path: a PNG or SVG file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plotting the frontier requires matplotlib: pip install 'DeepCache[tune]'") from error

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
    best = pareto_front(frontier["tuned"], lambda point: point["cost"], lambda point: point["psnr"])
    axes.plot(*_curve(best), "o-", color=_TUNED, label="tuned", markersize=4)
    measured, held_out = plan.results["tuning"]["measured"], plan.results["held_out"]["measured"]
    axes.plot(measured["cost"], measured["psnr"], "*", color=_TUNED, markersize=16, label="the plan")
    axes.plot(held_out["cost"], held_out["psnr"], "D", color="black", markersize=6, label="the plan, held-out prompts")
    axes.set_xlabel("multiply-accumulates of the U-Net, share of those without DeepCache")
    axes.set_ylabel("PSNR against no caching, dB")
    title = f"{plan.tuned['model']}, {plan.scheduler['class']}, {plan.tuned['steps']} steps"
    scales = [scale["guidance"] for scale in plan.results["held_out"]["scales"] if scale["guidance"] is not None]
    if scales:
        title += f", guidance {' and '.join(f'{scale:g}' for scale in scales)}"
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def _curve(points: Iterable[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    ordered = sorted(points, key=lambda point: (point["cost"], point["psnr"]))
    return [point["cost"] for point in ordered], [point["psnr"] for point in ordered]
