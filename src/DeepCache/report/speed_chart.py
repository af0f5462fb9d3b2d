"""The chart of a benchmark: the speed-up of every setting beside its limit."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from DeepCache.report.drawing import DEEPCACHE, INK, REFERENCE, Chart, new_figure
from DeepCache.report.numerals import times
from DeepCache.report.speed import Row, SpeedCell, SpeedTable, is_measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["speed_charts"]

_BAR = 14  # pixels from bar to bar
_LABEL = 18
_BATCH = 22
_AROUND = 92
_LONGEST_NAME = 40


def speed_charts(table: SpeedTable, name: str) -> list[Chart]:
    """A chart for each size of a table in which DeepCache was measured.

    Args:
        table: the table.
        name: what the names of the charts begin with.
    """
    charts = []
    for number, block in enumerate(table.blocks, start=1):
        rows = [row for cell in block for bars in _bars(cell, table).values() for row in bars.values()]
        if not rows:
            continue
        charts.append(
            Chart(
                f"{name}-chart-{number}",
                f"Speed-up at {block[0].size} px",
                f"Bars of the speed-up for each setting and batch ({table.title}); a mark shows the limit. It goes up "
                f"to {times(max(row['speed_up'] for row in rows))}. The numbers are in the tables of this section.",
                partial(_draw, block, table),
            )
        )
    return charts


def _bars(cell: SpeedCell, table: SpeedTable) -> dict[str, dict[str, Row]]:
    """The bars of each variant, by their colour."""
    found: dict[str, dict[str, Row]] = {}
    for variant in table.variants:
        for colour, row in ((DEEPCACHE, cell.deepcache(variant.name)), (REFERENCE, cell.reference(variant.name))):
            if is_measured(row):
                found.setdefault(variant.name, {})[colour] = row
    return found


def _draw(block: list[SpeedCell], table: SpeedTable) -> Figure:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    cells = {cell.cell["batch"]: variants for cell in block if (variants := _bars(cell, table))}
    every = [bars for variants in cells.values() for bars in variants.values()]
    # Downwards in pixels, so that the figure is as high as what is in it.
    height = _BATCH * len(cells) + _LABEL * len(every) + _BAR * (sum(map(len, every)) + 1)
    figure = new_figure(height + _AROUND, w_pad=0.02, h_pad=0.08)
    axes = figure.subplots()
    axes.set_ylim(height, 0)
    y = 0
    for batch, variants in cells.items():
        y += _BATCH
        _write(axes, y, f"batch {batch}", "bold")
        for variant, bars in variants.items():
            y += _LABEL
            _write(axes, y, _label(variant, bars))
            for colour, row in bars.items():
                y += _BAR
                _draw_bar(axes, y, colour, row)
    axes.set_xlim(left=0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("times as fast as without caching")
    axes.set_title(f"{block[0].size} px", loc="left")
    handles: list[Any] = [Patch(facecolor=DEEPCACHE, edgecolor=INK, linewidth=0.6, label="DeepCache")]
    if any(REFERENCE in bars for bars in every):
        handles.append(
            Patch(facecolor=REFERENCE, edgecolor=INK, linewidth=0.6, hatch="////", label="reference package")
        )
    handles += [
        Line2D([], [], marker="D", markersize=5, color=INK, linestyle="", label="limit of the multiply-accumulates"),
        Line2D([], [], color=INK, linewidth=1.2, label="slowest to fastest round"),
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=2, handlelength=1.4, columnspacing=1)
    return figure


def _label(variant: str, bars: dict[str, Row]) -> str:
    """What stands above the bars of a variant: its name and the numbers."""
    name = variant if len(variant) <= _LONGEST_NAME else variant[: _LONGEST_NAME - 1] + "…"
    words = [times(bars[DEEPCACHE]["speed_up"])] if DEEPCACHE in bars else []
    if REFERENCE in bars:
        words.append(f"reference {times(bars[REFERENCE]['speed_up'])}")
    limits = [row["limit"] for row in bars.values() if row["limit"] is not None]
    if limits:
        words.append(f"limit {times(limits[0])}")
    return f"{name}: {', '.join(words)}"


def _draw_bar(axes: Axes, y: float, colour: str, row: Row) -> None:
    hatch = "////" if colour == REFERENCE else None
    axes.barh(y, row["speed_up"], height=_BAR - 3, color=colour, edgecolor=INK, linewidth=0.6, hatch=hatch)
    axes.vlines(1, y - _BAR / 2, y + _BAR / 2, color=INK, linewidth=0.8, linestyle="dashed")
    axes.plot(row["speed_up_spread"] or [row["speed_up"]] * 2, [y, y], color=INK, linewidth=1.2)
    if row["limit"] is not None:
        axes.plot(row["limit"], y, "D", color=INK, markersize=5)


def _write(axes: Axes, y: float, text: str, weight: str = "normal") -> None:
    # No part of the layout: a long name must not squeeze the bars.
    axes.text(0, y, text, verticalalignment="center_baseline", fontweight=weight, in_layout=False)
