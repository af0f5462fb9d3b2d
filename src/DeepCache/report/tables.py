"""The tables of a report: rows of values, and how each column writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

from DeepCache.report.fidelity import FidelityGroup
from DeepCache.report.heat_map import Cell
from DeepCache.report.numerals import (
    DASH,
    confidence,
    decibels,
    gain,
    of_range,
    per_cent,
    seconds,
    times,
)
from DeepCache.report.speed import Row, SpeedTable, why_not
from DeepCache.text import format_bytes

__all__ = ["Column", "Table", "fidelity_table", "measurements_table", "speed_table"]

Parts = Mapping[str, Callable[[Any], Any]]

_VALUE: Parts = {"": lambda value: value}
_MEAN: Parts = {
    "": itemgetter("mean"),
    ", from": lambda metric: metric["confidence"][0],
    ", to": lambda metric: metric["confidence"][1],
}


class Column(NamedTuple):
    """A column: its name, the text of a value, and the values of plain columns by the end of their names."""

    name: str
    write: Callable[[Any], str] = str
    parts: Parts = _VALUE

    def text(self, value: Any) -> str:
        return DASH if value is None else self.write(value)


class Table(NamedTuple):
    """A table; `heading` is the number of the column that names the rows."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    heading: int = 0

    def plain(self) -> tuple[list[str], list[list[Any]]]:
        """The names of the columns, and rows of numbers and texts, with None for missing values."""
        names = [column.name + end for column in self.columns for end in column.parts]
        rows = [
            [
                None if value is None else part(value)
                for column, value in zip(self.columns, row, strict=True)
                for part in column.parts.values()
            ]
            for row in self.rows
        ]
        return names, rows


_PLACE = (Column("Resolution"), Column("Batch size"))


def _time(row: Row) -> str:
    return why_not(row) or f"{seconds(row['median'])} ({times(row['speed_up'])})"


def speed_table(table: SpeedTable) -> Table:
    """Seconds and speed-ups by size and batch, as in the diffusers documentation."""
    median = itemgetter("median")
    columns = [*_PLACE, Column("Original", lambda row: why_not(row) or seconds(row["median"]), {"": median})]
    for variant in table.variants:
        columns.append(Column(variant.heading, _time, {"": median, " speed-up": itemgetter("speed_up")}))
        columns += [Column(f"{variant.heading} published speed-up", times)] if variant.published else []
    notes = any(cell.note for cell in table.cells)
    rows = []
    for cell in table.cells:
        row: list[Any] = [cell.size, cell.batch, cell.row("no caching")]
        for variant in table.variants:
            row.append(cell.row("DeepCache", variant.name))
            published = cell.published.get(variant.name)
            row += [published and published.speed_up] if variant.published else []
        rows.append([*row, cell.note] if notes else row)
    title = f"Seconds per batch and speed-up: {table.title}, {table.steps} steps. Medians of the rounds."
    return Table(title, [*columns, Column("Note")] if notes else columns, rows)


def _median(name: str, median: str, spread: str, write: Callable[[float], str]) -> Column:
    parts: Parts = {
        "": itemgetter(median),
        ", from": lambda row: row[spread] and row[spread][0],
        ", to": lambda row: row[spread] and row[spread][1],
    }
    return Column(name, lambda row: why_not(row) or f"{write(row[median])} ({of_range(row[spread], write)})", parts)


def measurements_table(table: SpeedTable) -> Table:
    """Every row of every size and batch."""
    simple = {
        "mac_share": Column("Cost", per_cent),
        "limit": Column("Limit", times),
        "share_of_limit": Column("Share of the limit", per_cent),
        "bytes_kept": Column("Kept between steps", format_bytes),
        "peak_memory": Column("Peak memory", format_bytes),
        "first_seconds": Column("First run, seconds", seconds),
    }
    every = [(cell, row) for cell in table.cells for row in cell.cell["rows"]]
    if all(row["peak_memory"] is None for _, row in every):
        del simple["peak_memory"]
    columns = [
        *_PLACE,
        Column("Method"),
        Column("Settings"),
        _median("Seconds", "median", "spread", seconds),
        _median("Speed-up", "speed_up", "speed_up_spread", times),
        *simple.values(),
        Column("Pattern"),
    ]
    rows = [
        [
            *(cell.size, cell.batch, row["method"], row["variant"], row, row),
            *(row[key] for key in simple),
            row["pattern"] if row["method"] == "DeepCache" else None,
        ]
        for cell, row in every
    ]
    return Table("Every measurement: median and range of the rounds.", columns, rows, heading=3)


def fidelity_table(group: FidelityGroup, title: str, cells: Sequence[Cell], brief: bool = False) -> Table:
    """Settings with their cost and fidelity; the brief table has fewer columns."""
    numbers = {cell["label"]: number for number, cell in enumerate(group.front, start=1)}

    def standing(cell: Cell) -> str:
        better = cell["dominated_by"]
        return str(numbers.get(cell["label"], DASH if better is None else f"+{decibels(better['psnr_gain'])}"))

    columns: list[tuple[Column, Callable[[Cell], Any]]] = [
        (Column("Best, dB" if brief else "Front", standing, {"": itemgetter("front")}), lambda cell: cell),
        (Column("Settings"), itemgetter("label")),
        (Column("Cost", per_cent), itemgetter("mac_share")),
    ]
    for metric in group.metrics:
        if brief and metric.key not in ("psnr", "right"):
            continue
        columns.append((Column(metric.name, partial(confidence, digits=metric.digits), _MEAN), itemgetter(metric.key)))
        if metric.key == "psnr":
            write = partial(gain, digits=2)
            columns.append((Column("Over fewer steps, dB", write, _MEAN), group.over_fewer_steps))
            reuse: Callable[[Cell], Any] = lambda cell: cell["over_reuse"] and cell["over_reuse"]["psnr"]  # noqa: E731
            p5: Callable[[Cell], Any] = lambda cell: cell["psnr"] and cell["psnr"]["p5"]  # noqa: E731
            columns += [] if brief else [(Column("Over re-use, dB", write, _MEAN), reuse)]
            columns += [] if brief else [(Column("5th percentile", decibels), p5)]
    if not brief:
        columns.append((Column("Seconds per image", seconds), lambda cell: cell["seconds"] / group.images))
    rows = [[value(cell) for _, value in columns] for cell in cells]
    return Table(title, [column for column, _ in columns], rows, heading=1)
