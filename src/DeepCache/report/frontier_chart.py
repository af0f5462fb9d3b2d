"""The chart of an ablation: PSNR against cost, with the Pareto front and fewer steps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from DeepCache.report.drawing import DEEPCACHE, FEWER_STEPS, INK, Chart, new_figure
from DeepCache.report.fidelity import IDENTICAL, FidelityGroup
from DeepCache.report.numerals import decibels, per_cent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["frontier_chart"]

Cell = Mapping[str, Any]

_HEIGHT = 330


def frontier_chart(group: FidelityGroup, name: str) -> Chart | None:
    """The chart of a group; None where there is nothing to see.

    Args:
        group: the group.
        name: the name of the chart.
    """
    if not _shown(group.cells):
        return None
    nearest = max(_shown(group.cells), key=lambda cell: float(cell["psnr"]["mean"]))
    return Chart(
        name,
        f"PSNR against cost: {group.title}",
        f"Settings of DeepCache: {len(group.deepcache)}; numbers of fewer steps: {len(group.fewer_steps)}. The front "
        f"goes up to {decibels(nearest['psnr']['mean'])} dB at {per_cent(nearest['mac_share'])} of the "
        "multiply-accumulates. The numbers are in the tables of this section.",
        partial(_draw, group),
    )


def _shown(cells: list[Cell]) -> list[Cell]:
    """Those with a PSNR that a scale can show."""
    return [cell for cell in cells if cell["psnr"] is not None and cell["psnr"]["mean"] < IDENTICAL]


def _draw(group: FidelityGroup) -> Figure:
    figure = new_figure(_HEIGHT, w_pad=0.02, h_pad=0.08)
    axes = figure.subplots()
    front = _shown(group.front)
    dominated = [cell for cell in _shown(group.deepcache) if not cell["front"]]
    axes.plot(*_curve(dominated), "o", color=DEEPCACHE, alpha=0.4, markersize=3, label="DeepCache, dominated")
    fewer = _shown(group.fewer_steps)
    _draw_confidence(axes, fewer, FEWER_STEPS)
    axes.plot(*_curve(fewer), "s--", color=FEWER_STEPS, markersize=4, linewidth=1.2, label="fewer steps")
    # What a cost allows is what the last one before it reaches.
    axes.step(*_curve(front), where="post", color=INK, linewidth=0.8, label="Pareto front")
    best = [cell for cell in front if cell["method"] == "DeepCache"]
    _draw_confidence(axes, best, DEEPCACHE)
    axes.plot(*_curve(best), "o", color=DEEPCACHE, markeredgecolor=INK, markersize=6, label="DeepCache, on the front")
    axes.set_xlabel("multiply-accumulates of the U-Net, %")
    axes.set_ylabel("PSNR, dB")
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    figure.legend(loc="outside lower left", ncols=2, handlelength=1.6, columnspacing=1)
    _write_numbers(figure, axes, front, group.numbers)
    return figure


def _curve(cells: list[Cell]) -> tuple[list[float], list[float]]:
    return [100 * cell["mac_share"] for cell in cells], [cell["psnr"]["mean"] for cell in cells]


def _draw_confidence(axes: Axes, cells: list[Cell], colour: str) -> None:
    for cell in cells:
        x = 100 * cell["mac_share"]
        axes.plot([x, x], cell["psnr"]["confidence"], color=colour, linewidth=1, alpha=0.7)


def _write_numbers(figure: Figure, axes: Axes, front: list[Cell], numbers: Mapping[str, int]) -> None:
    """The numbers by which the tables call those on the front, as far as they have room."""
    figure.draw_without_rendering()
    taken: list[tuple[float, float]] = []
    for cell in front:
        x, y = axes.transData.transform((100 * cell["mac_share"], cell["psnr"]["mean"]))
        if any(abs(x - other) < 14 and abs(y - above) < 12 for other, above in taken):
            continue
        taken.append((x, y))
        axes.annotate(
            str(numbers[cell["label"]]),
            (100 * cell["mac_share"], cell["psnr"]["mean"]),
            xytext=(-4, 4),
            textcoords="offset points",
            horizontalalignment="right",
            fontsize=9,
        )
