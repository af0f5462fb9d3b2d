"""Heat maps of an ablation: PSNR and cost by interval and branch, as tables of HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from DeepCache.report.html import render

__all__ = ["IDENTICAL", "SHADES", "HeatMap", "Kind", "heat_maps"]

Cell = Mapping[str, Any]

IDENTICAL = 120.0
"""The PSNR that identical images count as, in dB."""

SHADES = 9
"""The number of colours: classes `shade-0` (lowest PSNR of the group) to `shade-8` in `heat_map.css`."""


class Kind(NamedTuple):
    """The settings that all cells of a heat map share.

    Args:
        forecast, skip_mode, guidance_reuse, between: as in `DeepCacheConfig`.
        threshold: None unless the schedule is adaptive.

    Example:
        >>> Kind("response", "uniform", guidance_reuse=True, between="skipped").title
        'response forecast, uniform, skipped steps, guidance reuse'
    """

    forecast: str
    skip_mode: str
    guidance_reuse: bool
    between: str = "shallow"
    threshold: float | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Kind:
        """The kind of settings that `DeepCacheConfig.to_dict` returned."""
        threshold = config["threshold"] if config["skip_mode"] == "adaptive" else None
        # Earlier versions had only shallow steps.
        between = config.get("between", "shallow")
        return cls(config["forecast"], config["skip_mode"], bool(config["guidance_reuse"]), between, threshold)

    @property
    def title(self) -> str:
        """The kind in words."""
        words = ["re-use" if self.forecast == "none" else f"{self.forecast} forecast"]
        words += [self.skip_mode if self.threshold is None else f"{self.skip_mode} with threshold {self.threshold:g}"]
        words += [] if self.between == "shallow" else [f"{self.between} steps"]
        return ", ".join([*words, "guidance reuse"] if self.guidance_reuse else words)


@dataclass(frozen=True)
class HeatMap:
    """Cells of a result file by interval and branch. `psnr_range` is that of all heat maps of the group, without
    identical images, so that colours can be compared."""

    kind: Kind
    cells: Mapping[tuple[int, int], Cell]
    psnr_range: tuple[float, float]

    @property
    def intervals(self) -> list[int]:
        """The columns."""
        return sorted({interval for interval, _ in self.cells})

    @property
    def branches(self) -> list[int]:
        """The rows."""
        return sorted({branch for _, branch in self.cells})

    def html(self, chosen: str | None = None) -> str:
        """An accessible table; styles are in `heat_map.css`.

        Args:
            chosen: makes every cell a button, of which the one with this label is pressed.
        """
        return render("heat_map.html", heat_map=self, chosen=chosen, identical=IDENTICAL)

    def shade(self, cell: Cell) -> int:
        """The number of the colour of a cell."""
        low, high = self.psnr_range
        psnr = float(cell["psnr"]["mean"])
        # One shade for all where the range is empty.
        place = (psnr - low) / ((high - low) or math.inf)
        return min(SHADES - 1, math.floor(SHADES * place))


def heat_maps(cells: Sequence[Cell]) -> list[HeatMap]:
    """A heat map for each kind of settings, in the order of the cells. Plans and explicit schedules are in none."""
    found: dict[Kind, dict[tuple[int, int], Cell]] = {}
    for cell in cells:
        config = cell["config"]
        if config is not None and config["plan"] is None and config["schedule"] is None and cell["psnr"] is not None:
            place = config["cache_interval"], config["cache_branch_id"]
            found.setdefault(Kind.of(config), {})[place] = cell
    values = [cell["psnr"]["mean"] for cells in found.values() for cell in cells.values()]
    values = [value for value in values if value < IDENTICAL] or [IDENTICAL]
    return [HeatMap(kind, cells, (min(values), max(values))) for kind, cells in found.items()]
