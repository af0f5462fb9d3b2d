"""Heat maps of an ablation: interval by branch, of PSNR and of cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from DeepCache.report.drawing import INK, Chart, new_figure
from DeepCache.report.fidelity import IDENTICAL, FidelityGroup, HeatMap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["heat_map_charts"]

Cell = Mapping[str, Any]

_ROW = 22
_AROUND = 66


@dataclass(frozen=True)
class _Quantity:
    name: str
    key: str
    value: Callable[[Cell], float]


_QUANTITIES = (
    _Quantity("PSNR, dB", "psnr", lambda cell: float(cell["psnr"]["mean"])),
    _Quantity("cost, % of the multiply-accumulates", "cost", lambda cell: 100 * float(cell["mac_share"])),
)


def heat_map_charts(group: FidelityGroup, name: str) -> list[Chart]:
    """Two charts, PSNR and cost, for all settings of a group that differ in interval and branch alone.

    Args:
        group: the group.
        name: what the names of the charts begin with.
    """
    maps = group.heat_maps
    charts = []
    for number, heat_map in enumerate(maps, start=1):
        for quantity in _QUANTITIES:
            # One scale for all of a group, so that they can be compared.
            values = [quantity.value(cell) for each in maps for cell in each.cells.values()]
            scale = [value for value in values if quantity.key != "psnr" or value < IDENTICAL] or [0.0]
            charts.append(
                Chart(
                    f"{name}-map-{number}-{quantity.key}",
                    f"{quantity.name}: {heat_map.title}",
                    f"A grid of {len(heat_map.branches)} branches by {len(heat_map.intervals)} intervals with the "
                    "number in each cell; the numbers are also in the table of all settings.",
                    partial(_draw, heat_map, quantity, (min(scale), max(scale))),
                )
            )
    return charts


def _draw(heat_map: HeatMap, quantity: _Quantity, scale: tuple[float, float]) -> Figure:
    from matplotlib import colormaps
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    colours, norm = colormaps["cividis"], Normalize(*scale, clip=True)
    figure = new_figure(_ROW * len(heat_map.branches) + _AROUND, w_pad=0.02, h_pad=0.02)
    axes = figure.subplots()
    for row, branch in enumerate(heat_map.branches):
        for column, interval in enumerate(heat_map.intervals):
            cell = heat_map.cells.get((interval, branch))
            if cell is None:
                _write(axes, column, row, "–", INK)
                continue
            value = quantity.value(cell)
            colour = colours(norm(value))
            axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, edgecolor="none"))
            bright = 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2] > 0.45
            _write(axes, column, row, f"{value:.1f}", "#000000" if bright else "#ffffff")
    axes.set_xlim(0, len(heat_map.intervals))
    axes.set_ylim(len(heat_map.branches), 0)
    axes.set_xticks([column + 0.5 for column in range(len(heat_map.intervals))], map(str, heat_map.intervals))
    axes.set_yticks([row + 0.5 for row in range(len(heat_map.branches))], map(str, heat_map.branches))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("interval")
    axes.set_ylabel("branch")
    axes.set_title(f"{heat_map.title}\n{quantity.name}", loc="left")
    return figure


def _write(axes: Any, column: int, row: int, text: str, colour: str) -> None:
    axes.text(
        column + 0.5,
        row + 0.5,
        text,
        color=colour,
        horizontalalignment="center",
        verticalalignment="center",
    )
