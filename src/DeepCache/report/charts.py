"""The charts of a report: speed-ups beside their limits, and PSNR against cost."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from DeepCache.report.fidelity import IDENTICAL, FidelityGroup
from DeepCache.report.heat_map import Cell
from DeepCache.report.html import data_uri
from DeepCache.report.numerals import decibels, per_cent, times
from DeepCache.report.speed import Row, SpeedTable, is_measured
from DeepCache.text import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Chart", "frontier_chart", "speed_charts"]

# Okabe and Ito's colours, which people with a colour vision deficiency can tell apart.
_COLOURS = {"DeepCache": "#0072b2", "reference package": "#009e73", "fewer steps": "#d55e00"}
_INK = "#1b1d20"
_WIDTH = 360  # pixels of a phone: what is legible there is legible everywhere
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": _INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "text.color": _INK,
    "text.parse_math": False,  # names of settings are not formulas
    "svg.fonttype": "none",
    "svg.hashsalt": "DeepCache",
}
# Without these, matplotlib writes the date and its own name.
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class Chart:
    """A chart, what it shows in words, and the function that plots it."""

    title: str
    description: str
    plot: Callable[[], Figure]

    def svg(self) -> str:
        """An address that holds the chart as an SVG file."""
        return data_uri(self._saved(format="svg", metadata=_NO_METADATA), "image/svg+xml")

    def png(self) -> bytes:
        """The chart as a PNG file."""
        return self._saved(format="png", dpi=144, metadata={"Software": None})

    def _saved(self, **options: Any) -> bytes:
        buffer = io.BytesIO()
        with _style():
            self.plot().savefig(buffer, facecolor="white", **options)
        return buffer.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("charts require matplotlib: pip install 'DeepCache[report]'") from error
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A name in letters that matplotlib's font lacks; browsers have them.
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
        yield


def _axes(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH / 72, height / 72), layout="constrained")
    return figure, figure.subplots()


def frontier_chart(group: FidelityGroup) -> Chart | None:
    """PSNR against cost with the Pareto front; None if there is nothing to show."""
    shown = _shown(group.cells)
    if not shown:
        return None
    best = max(shown, key=lambda cell: float(cell["psnr"]["mean"]))
    return Chart(
        f"PSNR against cost: {group.title}",
        f"Settings of DeepCache: {len(group.deepcache)}; numbers of fewer steps: {len(group.fewer_steps)}. The front "
        f"reaches {decibels(best['psnr']['mean'])} dB at {per_cent(best['mac_share'])} of the multiply-accumulates. "
        "The tables of this section have the numbers.",
        partial(_plot_frontier, group),
    )


def _shown(cells: list[Cell]) -> list[Cell]:
    """The cells with a PSNR that an axis can show."""
    return [cell for cell in cells if cell["psnr"] is not None and cell["psnr"]["mean"] < IDENTICAL]


def _plot_frontier(group: FidelityGroup) -> Figure:
    figure, axes = _axes(330)
    front, fewer = _shown(group.front), _shown(group.fewer_steps)
    dominated = [cell for cell in _shown(group.deepcache) if not cell["front"]]
    best = [cell for cell in front if cell["method"] == "DeepCache"]
    blue, orange = _COLOURS["DeepCache"], _COLOURS["fewer steps"]
    axes.plot(*_curve(dominated), "o", color=blue, alpha=0.4, markersize=3, label="DeepCache, dominated")
    axes.errorbar(*_curve(fewer), _errors(fewer), fmt="s--", color=orange, markersize=4, label="fewer steps")
    # A cost allows the PSNR of the last setting before it.
    axes.step(*_curve(front), where="post", color=_INK, linewidth=0.8, label="Pareto front")
    label = "DeepCache, on the front"
    axes.errorbar(*_curve(best), _errors(best), fmt="o", color=blue, markeredgecolor=_INK, markersize=6, label=label)
    axes.set_xlabel("multiply-accumulates of the U-Net, %")
    axes.set_ylabel("PSNR, dB")
    axes.grid(color=_INK, alpha=0.12, linewidth=0.6)
    figure.legend(loc="outside lower left", ncols=2, handlelength=1.6, columnspacing=1)
    _write_numbers(figure, axes, front, group)
    return figure


def _curve(cells: list[Cell]) -> tuple[list[float], list[float]]:
    return [100 * cell["mac_share"] for cell in cells], [cell["psnr"]["mean"] for cell in cells]


def _errors(cells: list[Cell]) -> list[float]:
    return [(cell["psnr"]["confidence"][1] - cell["psnr"]["confidence"][0]) / 2 for cell in cells]


def _write_numbers(figure: Figure, axes: Axes, front: list[Cell], group: FidelityGroup) -> None:
    """Writes the number of each setting on the front, where it fits."""
    numbers = {cell["label"]: str(number) for number, cell in enumerate(group.front, start=1)}
    figure.draw_without_rendering()
    taken: list[tuple[float, float]] = []
    for cell in front:
        place = 100 * cell["mac_share"], cell["psnr"]["mean"]
        x, y = axes.transData.transform(place)
        if not any(abs(x - other) < 14 and abs(y - above) < 12 for other, above in taken):
            taken.append((x, y))
            axes.annotate(numbers[cell["label"]], place, (-4, 4), textcoords="offset points", ha="right", fontsize=9)


def speed_charts(table: SpeedTable) -> list[Chart]:
    """A chart for each size of a table that has measurements of DeepCache."""
    sizes: dict[str, dict[str, dict[str, Row]]] = {}
    for cell in table.cells:
        for variant in table.variants:
            methods = ("DeepCache", "reference package")
            rows = {method: row for method in methods if is_measured(row := cell.row(method, variant.name))}
            if rows:
                name = shortened(variant.name, 22)
                sizes.setdefault(cell.size, {})[f"{name}\nbatch {cell.batch}"] = rows
    return [_speed_chart(table.title, size, bars) for size, bars in sizes.items()]


def _speed_chart(title: str, size: str, bars: dict[str, dict[str, Row]]) -> Chart:
    highest = max(row["speed_up"] for rows in bars.values() for row in rows.values())
    return Chart(
        f"Speed-up at {size} px",
        f"Bars of the speed-up for each setting and batch ({title}), and its limit. The highest is {times(highest)}. "
        "The tables of this section have the numbers.",
        partial(_plot_speed, size, bars),
    )


def _plot_speed(size: str, bars: dict[str, dict[str, Row]]) -> Figure:
    figure, axes = _axes(40 * len(bars) + 110)
    for place, rows in enumerate(bars.values()):
        for number, (method, row) in enumerate(rows.items()):
            y = place + 0.4 * (number - (len(rows) - 1) / 2)
            low, high = row["speed_up_spread"] or [row["speed_up"]] * 2
            look: dict[str, Any] = {"color": _COLOURS[method], "hatch": None if method == "DeepCache" else "////"}
            errors = [[max(0, row["speed_up"] - low)], [max(0, high - row["speed_up"])]]
            bar = axes.barh(y, row["speed_up"], 0.36, xerr=errors, edgecolor=_INK, linewidth=0.6, label=method, **look)
            axes.bar_label(bar, [times(row["speed_up"])], label_type="center", color="white", fontsize=9)
            if row["limit"] is not None:
                axes.plot(row["limit"], y, "D", color=_INK, markersize=5, label="limit")
    axes.axvline(1, color=_INK, linewidth=0.8, linestyle="dashed")
    axes.set_yticks(range(len(bars)), list(bars), fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("speed-up over no caching")
    axes.set_title(f"{size} px", loc="left")
    handles, labels = axes.get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    figure.legend(by_label.values(), by_label, loc="outside lower left", ncols=3, handlelength=1.4, columnspacing=1)
    return figure
