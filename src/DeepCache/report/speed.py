"""What a benchmark measured, put together as tables: one for each type, mode and scope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeGuard

from DeepCache.report.numerals import size
from DeepCache.report.published import PublishedTime, published_time
from DeepCache.report.sources import Source

__all__ = ["Row", "SpeedCell", "SpeedTable", "Variant", "is_measured", "speed_tables", "unfinished_cells"]

Row = Mapping[str, Any]

# As result files call them.
_BASELINE, _DEEPCACHE, _REFERENCE, _FEWER_STEPS = "no caching", "DeepCache", "reference package", "fewer steps"
_SCOPES = {"pipeline": "whole pipeline", "unet": "U-Net alone"}


@dataclass(frozen=True)
class Variant:
    """Settings of DeepCache, which are a column of the table.

    Args:
        name: their short name.
        heading: how the documentation of diffusers writes them.
        published: whether something was published of them at any size and batch of the table.
        in_reference: whether the reference package was measured with them.
    """

    name: str
    heading: str
    published: bool
    in_reference: bool


@dataclass(frozen=True)
class SpeedCell:
    """One size and batch.

    Args:
        cell: the cell of the result file.
        rounds: how many rounds there are to be.
        published: what was published of each variant, by its name.
    """

    cell: Mapping[str, Any]
    rounds: int
    published: Mapping[str, PublishedTime]

    @property
    def size(self) -> str:
        """Width and height in pixels; one number for a square."""
        return size(self.cell["width"], self.cell["height"])

    @property
    def original(self) -> Row | None:
        """The pipeline without caching."""
        return self._row(_BASELINE)

    @property
    def fewer_steps(self) -> list[Row]:
        """Fewer steps without caching."""
        return [row for row in self.cell["rows"] if row["method"] == _FEWER_STEPS]

    def deepcache(self, variant: str) -> Row | None:
        """DeepCache with these settings."""
        return self._row(_DEEPCACHE, variant)

    def reference(self, variant: str) -> Row | None:
        """The reference package with these settings."""
        return self._row(_REFERENCE, variant)

    def fewer_steps_like(self, variant: str) -> Row | None:
        """Those fewer steps whose cost is nearest to that of DeepCache with these settings."""
        row = self.deepcache(variant)
        share = row["mac_share"] if row is not None else None
        if share is None:
            return None
        known = [fewer for fewer in self.fewer_steps if fewer["mac_share"] is not None]
        return min(known, key=lambda fewer: abs(fewer["mac_share"] - share), default=None)

    def against_reference(self, variant: str) -> float | None:
        """How many times as fast as the reference package DeepCache is: the median of the ratios within a round."""
        ours, theirs = self.deepcache(variant), self.reference(variant)
        if not is_measured(ours) or not is_measured(theirs):
            return None
        ratios = [their / our for their, our in zip(theirs["seconds"], ours["seconds"], strict=False)]
        return float(median(ratios))

    @property
    def note(self) -> str:
        """What there is to say in words: not finished, or out of memory; empty where all is well."""
        original = self.original
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

    def _row(self, method: str, variant: str | None = None) -> Row | None:
        rows = self.cell["rows"]
        return next((row for row in rows if row["method"] == method and variant in (None, row["variant"])), None)


@dataclass(frozen=True)
class SpeedTable:
    """All sizes and batches of one type, mode and scope.

    Args:
        dtype: type of the weights.
        mode: eager or compiled.
        scope: pipeline or unet.
        steps: denoising steps.
        variants: the columns.
        blocks: the cells of each size, the largest batch first.
    """

    dtype: str
    mode: str
    scope: str
    steps: int
    variants: list[Variant]
    blocks: list[list[SpeedCell]]

    @property
    def scope_in_words(self) -> str:
        """The whole pipeline, or the U-Net alone."""
        return _SCOPES[self.scope]

    @property
    def title(self) -> str:
        """Scope, type and mode."""
        words = self.scope_in_words
        return f"{words[0].upper()}{words[1:]}, {self.dtype}, {self.mode}"

    @property
    def cells(self) -> list[SpeedCell]:
        """All of them."""
        return [cell for block in self.blocks for cell in block]

    @property
    def any_published(self) -> bool:
        """Whether anything was published that belongs into it."""
        return any(variant.published for variant in self.variants)

    @property
    def any_reference(self) -> bool:
        """Whether the reference package was measured."""
        return any(variant.in_reference for variant in self.variants)

    @property
    def any_fewer_steps(self) -> bool:
        """Whether fewer steps were measured."""
        return any(cell.fewer_steps for cell in self.cells)

    @property
    def any_speed_up(self) -> bool:
        """Whether DeepCache was measured at all."""
        rows = (cell.deepcache(variant.name) for cell in self.cells for variant in self.variants)
        return any(is_measured(row) for row in rows)

    @property
    def any_peak_memory(self) -> bool:
        """Whether the memory of the device is known."""
        return any(row["peak_memory"] is not None for cell in self.cells for row in cell.cell["rows"])


def is_measured(row: Row | None) -> TypeGuard[Row]:
    """Whether a row has its numbers."""
    return row is not None and not row["error"] and row["speed_up"] is not None


def speed_tables(source: Source) -> list[SpeedTable]:
    """The tables of a benchmark, in the order in which they were measured."""
    keys = dict.fromkeys((cell["dtype"], cell["mode"], cell["scope"]) for cell in source.result["cells"])
    return [_table(source.result, key) for key in keys]


def unfinished_cells(source: Source) -> int:
    """How many cells of a benchmark are not finished."""
    return sum(cell["status"] in ("waiting", "partial") for cell in source.result["cells"])


def _table(result: Mapping[str, Any], key: tuple[str, str, str]) -> SpeedTable:
    settings = result["settings"]
    found = [cell for cell in result["cells"] if (cell["dtype"], cell["mode"], cell["scope"]) == key]
    cells = [SpeedCell(cell, settings["rounds"], _published(settings, cell)) for cell in found]
    blocks: dict[tuple[int, int], list[SpeedCell]] = {}
    for cell in sorted(cells, key=lambda one: (one.cell["width"] * one.cell["height"], one.size, -one.cell["batch"])):
        blocks.setdefault((cell.cell["width"], cell.cell["height"]), []).append(cell)
    variants = [
        Variant(
            name,
            _heading(name),
            published=any(name in cell.published for cell in cells),
            in_reference=any(cell.reference(name) is not None for cell in cells),
        )
        for name in settings["variants"]
    ]
    return SpeedTable(*key, settings["steps"], variants, list(blocks.values()))


def _published(settings: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, PublishedTime]:
    place = (settings["model"], cell["width"], cell["height"], cell["batch"])
    found = {name: published_time(*place, config) for name, config in settings["variants"].items()}
    return {name: time for name, time in found.items() if time is not None}


def _heading(name: str) -> str:
    """`I=3 B=0` as the documentation writes it; the name of a plan stays whole."""
    return f"DeepCache({name if name.startswith('plan ') else ', '.join(name.split())})"
