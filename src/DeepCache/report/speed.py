"""The measurements of a benchmark: one table for each dtype, mode and scope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

from DeepCache.report.numerals import size
from DeepCache.report.published import PublishedTime, published_time
from DeepCache.report.sources import Source

__all__ = ["Row", "SpeedCell", "SpeedTable", "Variant", "is_measured", "speed_tables", "unfinished_cells", "why_not"]

Row = Mapping[str, Any]


class Variant(NamedTuple):
    """Settings of DeepCache: their short name, the name in the diffusers documentation, whether published times exist
    for them, and whether the reference package was measured with them."""

    name: str
    heading: str
    published: bool
    in_reference: bool


@dataclass(frozen=True)
class SpeedCell:
    """One size and batch: the cell of the result file, the number of rounds, and published times by variant."""

    cell: Mapping[str, Any]
    rounds: int
    published: Mapping[str, PublishedTime]

    @property
    def size(self) -> str:
        return size(self.cell["width"], self.cell["height"])

    @property
    def batch(self) -> int:
        return int(self.cell["batch"])

    def row(self, method: str, variant: str | None = None) -> Row | None:
        """The row of a method, such as `no caching`, `DeepCache` or `reference package`."""
        rows = self.cell["rows"]
        return next((row for row in rows if row["method"] == method and variant in (None, row["variant"])), None)

    def fewer_steps_like(self, variant: str) -> Row | None:
        """The fewer steps whose cost is closest to that of DeepCache with these settings."""
        row = self.row("DeepCache", variant)
        if row is None or row["mac_share"] is None:
            return None
        share = row["mac_share"]
        fewer = [row for row in self.cell["rows"] if row["method"] == "fewer steps" and row["mac_share"] is not None]
        return min(fewer, key=lambda row: abs(row["mac_share"] - share), default=None)

    @property
    def note(self) -> str:
        """Why the cell is not finished; empty if it is."""
        original = self.row("no caching")
        done = len(original["seconds"]) if original is not None else 0
        rounds = f"{done} of {self.rounds} rounds"
        match self.cell["status"]:
            case "waiting":
                return "not measured yet"
            case "partial":
                return f"not finished: {rounds}"
            case "out of memory":
                reason = f": {self.cell['reason']}" if self.cell["reason"] else ""
                return (f"out of memory after {rounds}" if done else "out of memory") + reason
        return ""


@dataclass(frozen=True)
class SpeedTable:
    """All sizes and batches of one dtype, mode and scope; cells are by size, the largest batch first."""

    dtype: str
    mode: str
    scope: str
    steps: int
    variants: list[Variant]
    cells: list[SpeedCell]

    @property
    def title(self) -> str:
        return f"{'Whole pipeline' if self.scope == 'pipeline' else 'U-Net alone'}, {self.dtype}, {self.mode}"

    def measured(self, variant: str) -> list[tuple[SpeedCell, Row]]:
        """The measurements of DeepCache with these settings."""
        rows = [(cell, cell.row("DeepCache", variant)) for cell in self.cells]
        return [(cell, row) for cell, row in rows if is_measured(row)]


def is_measured(row: Row | None) -> TypeGuard[Row]:
    """Whether a row has numbers."""
    return row is not None and not row["error"] and row["speed_up"] is not None


def why_not(row: Row) -> str:
    """Why a row has no numbers; empty if it has."""
    return f"failed: {row['error']}" if row["error"] not in ("", "out of memory") else str(row["error"])


def speed_tables(source: Source) -> list[SpeedTable]:
    """The tables of a benchmark, in the order of the file."""
    settings = source.result["settings"]
    found: dict[tuple[str, str, str], list[SpeedCell]] = {}
    for cell in source.result["cells"]:
        place = (settings["model"], cell["width"], cell["height"], cell["batch"])
        times = {name: published_time(*place, config) for name, config in settings["variants"].items()}
        published = {name: time for name, time in times.items() if time is not None}
        key = (cell["dtype"], cell["mode"], cell["scope"])
        found.setdefault(key, []).append(SpeedCell(cell, settings["rounds"], published))
    return [_table(settings, key, cells) for key, cells in found.items()]


def _table(settings: Mapping[str, Any], key: tuple[str, str, str], cells: list[SpeedCell]) -> SpeedTable:
    cells = sorted(cells, key=lambda one: (one.cell["width"] * one.cell["height"], one.size, -one.batch))
    variants = [
        Variant(
            name,
            # As the diffusers documentation writes it; the name of a plan stays whole.
            f"DeepCache({name if name.startswith('plan ') else ', '.join(name.split())})",
            published=any(name in cell.published for cell in cells),
            in_reference=any(cell.row("reference package", name) is not None for cell in cells),
        )
        for name in settings["variants"]
    ]
    return SpeedTable(*key, settings["steps"], variants, cells)


def unfinished_cells(source: Source) -> int:
    """The number of cells of a benchmark that are not finished."""
    return sum(cell["status"] in ("waiting", "partial") for cell in source.result["cells"])
