"""The tables of a report as plain rows, for those who reckon with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from DeepCache.report.fidelity import FidelityGroup
from DeepCache.report.speed import SpeedTable

__all__ = ["Table", "fidelity_table", "measurements_table", "speed_table"]

_MEASURED = (
    "method",
    "variant",
    "steps",
    "pattern",
    "mac_share",
    "median",
    "speed_up",
    "limit",
    "share_of_limit",
    "bytes_kept",
    "peak_memory",
    "first_seconds",
    "error",
)


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        columns: the names of the columns.
        rows: a value for each column; None where there is none.
    """

    columns: list[str]
    rows: list[list[Any]]


def speed_table(table: SpeedTable) -> Table:
    """Seconds and speed-ups by size and batch, as the documentation of diffusers has them."""
    columns = ["Resolution", "Batch size", "Original"]
    for variant in table.variants:
        columns += [variant.heading, f"{variant.heading} speed-up"]
        columns += [f"{variant.heading} published speed-up"] if variant.published else []
    rows = []
    for cell in table.cells:
        row: list[Any] = [cell.size, cell.cell["batch"], _of(cell.original, "median")]
        for variant in table.variants:
            found = cell.deepcache(variant.name)
            row += [_of(found, "median"), _of(found, "speed_up")]
            if variant.published:
                published = cell.published.get(variant.name)
                row.append(published.speed_up if published is not None else None)
        rows.append([*row, cell.note])
    return Table([*columns, "Note"], rows)


def measurements_table(table: SpeedTable) -> Table:
    """Every row of every size and batch."""
    columns = ["Resolution", "Batch size", *_MEASURED, "shortest", "longest", "smallest speed-up", "largest speed-up"]
    rows = [
        [
            cell.size,
            cell.cell["batch"],
            *(row[key] for key in _MEASURED),
            *(row["spread"] or (None, None)),
            *(row["speed_up_spread"] or (None, None)),
        ]
        for cell in table.cells
        for row in cell.cell["rows"]
    ]
    return Table(columns, rows)


def fidelity_table(group: FidelityGroup) -> Table:
    """Every setting, the cheapest first."""
    columns = ["Method", "Settings", "Cost"]
    for metric in group.metrics:
        columns += [metric.name, f"{metric.name}, from", f"{metric.name}, to", f"{metric.name}, 5th percentile"]
    for name in ("Over re-use, dB", "Over re-use, SSIM", "Over fewer steps, dB"):
        columns += [name, f"{name}, from", f"{name}, to"]
    columns += ["Seconds per image", "On the front", "Dominated by", "Nearer by, dB"]
    rows = []
    for cell in group.cells:
        row: list[Any] = [cell["method"], cell["label"], cell["mac_share"]]
        for metric in group.metrics:
            value = cell[metric.key]
            row += [None] * 4 if value is None else [value["mean"], *value["confidence"], value["p5"]]
        reuse = cell["over_reuse"] or {}
        for gain in (reuse.get("psnr"), reuse.get("ssim"), group.over_fewer_steps(cell)):
            row += [None] * 3 if gain is None else [gain["mean"], *gain["confidence"]]
        better = cell["dominated_by"]
        row += [cell["seconds"] / group.images, cell["front"], _of(better, "label"), _of(better, "psnr_gain")]
        rows.append(row)
    return Table(columns, rows)


def _of(found: Any, key: str) -> Any:
    return found[key] if found is not None else None
