"""What an ablation measured, put together: one group for each guidance scale, scheduler and number of steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from DeepCache.bench.ablation_cells import guidance_in_words
from DeepCache.bench.summary import paired
from DeepCache.report.sources import Source

__all__ = [
    "IDENTICAL",
    "METRICS",
    "FidelityGroup",
    "HeatMap",
    "Metric",
    "fidelity_groups",
    "kind_in_words",
    "unfinished_groups",
]

Cell = Mapping[str, Any]

IDENTICAL = 120.0
"""The PSNR that identical images count as, in dB."""


@dataclass(frozen=True)
class Metric:
    """A measure of fidelity.

    Args:
        key: its key in result files.
        name: what it is called.
        digits: how many decimals it is shown with.
    """

    key: str
    name: str
    digits: int


METRICS = (
    Metric("psnr", "PSNR, dB", 2),
    Metric("ssim", "SSIM", 4),
    Metric("lpips", "LPIPS", 4),
    Metric("clip", "CLIP", 2),
    Metric("right", "Right objects", 3),
)


@dataclass(frozen=True)
class HeatMap:
    """Interval by branch, all else alike.

    Args:
        title: what is alike.
        intervals: the columns.
        branches: the rows.
        cells: the settings at an interval and branch, as far as they were drawn.
    """

    title: str
    intervals: list[int]
    branches: list[int]
    cells: Mapping[tuple[int, int], Cell]


@dataclass(frozen=True)
class FidelityGroup:
    """All settings at one guidance scale, with one scheduler and number of steps.

    Args:
        title: scheduler and steps, and the guidance scale where the ablation has several.
        group: the group of the result file.
        images: how many images each setting drew.
        batch: how many of them in one pipeline call.
        missing: what was asked for and is not there yet.
    """

    title: str
    group: Mapping[str, Any]
    images: int
    batch: int
    missing: list[str]

    @property
    def reference(self) -> Mapping[str, Any] | None:
        """The pipeline without caching."""
        reference: Mapping[str, Any] | None = self.group["reference"]
        return reference

    @property
    def guidance(self) -> float | None:
        """The guidance scale; None where the pipeline takes none."""
        guidance: float | None = self.group["guidance"]
        return guidance

    @property
    def cells(self) -> list[Cell]:
        """Every way to draw, the cheapest first."""
        return sorted(self.group["cells"], key=lambda cell: (cell["mac_share"], -_psnr(cell)))

    @property
    def front(self) -> list[Cell]:
        """Those that no other beats at the same cost or less, the cheapest first."""
        return [cell for cell in self.cells if cell["front"]]

    @property
    def numbers(self) -> dict[str, int]:
        """The number of each on the front in the chart, by its label."""
        return {cell["label"]: number for number, cell in enumerate(self.front, start=1)}

    @property
    def metrics(self) -> list[Metric]:
        """Those that were measured."""
        found = [*self.group["cells"], self.reference or {}]
        return [metric for metric in METRICS if any(cell.get(metric.key) is not None for cell in found)]

    def named(self, label: str) -> Cell | None:
        """The one with this label."""
        return next((cell for cell in self.group["cells"] if cell["label"] == label), None)

    def fewer_steps_like(self, cell: Cell) -> Cell | None:
        """Those fewer steps whose cost is nearest to that of a cell."""
        fewer = [other for other in self.fewer_steps if other["psnr"] is not None]
        return min(fewer, key=lambda other: abs(other["mac_share"] - cell["mac_share"]), default=None)

    def over_fewer_steps(self, cell: Cell) -> Mapping[str, Any] | None:
        """What a cell of DeepCache gains over fewer steps at the nearest cost.

        Returns:
            `label` of the fewer steps, and `mean` and 95 % `confidence` of the difference of PSNR in dB, image by
            image; None for fewer steps, and where either was not measured.
        """
        fewer = self.fewer_steps_like(cell)
        if fewer is None or cell["psnr"] is None or cell["method"] != "DeepCache":
            return None
        return {"label": fewer["label"], **paired(cell["psnr"]["values"], fewer["psnr"]["values"])}

    @property
    def fewer_steps(self) -> list[Cell]:
        """Fewer steps without caching, the cheapest first."""
        return [cell for cell in self.cells if cell["method"] == "fewer steps"]

    @property
    def deepcache(self) -> list[Cell]:
        """DeepCache, the cheapest first."""
        return [cell for cell in self.cells if cell["method"] == "DeepCache"]

    @property
    def heat_maps(self) -> list[HeatMap]:
        """Those with two intervals and two branches or more."""
        found: dict[tuple[str, str, bool, str, float | None], dict[tuple[int, int], Cell]] = {}
        for cell in self.group["cells"]:
            config = cell["config"]
            if config is None or config["plan"] is not None or config["schedule"] is not None or cell["psnr"] is None:
                continue
            # Earlier versions had shallow steps alone.
            between = config.get("between", "shallow")
            threshold = config["threshold"] if config["skip_mode"] == "adaptive" else None
            kind = (config["forecast"], config["skip_mode"], bool(config["guidance_reuse"]), between, threshold)
            found.setdefault(kind, {})[config["cache_interval"], config["cache_branch_id"]] = cell
        maps = []
        for kind, cells in found.items():
            intervals = sorted({interval for interval, _ in cells})
            branches = sorted({branch for _, branch in cells})
            if len(intervals) > 1 and len(branches) > 1:
                maps.append(HeatMap(kind_in_words(*kind), intervals, branches, cells))
        return maps


def fidelity_groups(source: Source) -> list[FidelityGroup]:
    """The groups of an ablation, in the order in which they were drawn."""
    settings = source.result["settings"]
    images = max(1, len(settings["prompts"]) * len(settings["seeds"]))
    several = len(settings["guidances"]) > 1
    titles = [
        f"{group['scheduler_class']}, {group['steps']} steps"
        + (guidance_in_words(group["guidance"]) if several else "")
        for group in source.result["groups"]
    ]
    groups = []
    for group, title in zip(source.result["groups"], titles, strict=True):
        if titles.count(title) > 1:
            title += f", asked for as {group['scheduler']}"
        there = {cell["label"] for cell in group["cells"]}
        missing = [label for label in group["labels"] if label not in there]
        if all(cell["method"] == "DeepCache" for cell in group["cells"]):
            missing.append("fewer steps")
        groups.append(FidelityGroup(title, group, images, settings["batch"], missing))
    return groups


def unfinished_groups(source: Source) -> int:
    """How many groups of an ablation are not finished, as far as the file tells."""
    return sum(group.reference is None or bool(group.missing) for group in fidelity_groups(source))


def kind_in_words(
    forecast: str,
    skip_mode: str,
    guidance_reuse: bool,
    between: str = "shallow",
    threshold: float | None = None,
) -> str:
    """What a heat map has in common, in words; the arguments are as in `DeepCacheConfig`, but for `threshold`, which is
    None unless the schedule is adaptive.

    Example:
        >>> kind_in_words("none", "uniform", guidance_reuse=True)
        're-use, uniform, guidance reuse'
        >>> kind_in_words("response", "uniform", guidance_reuse=False, between="skipped")
        'response forecast, uniform, skipped steps'
    """
    spread = skip_mode if threshold is None else f"{skip_mode} with threshold {threshold:g}"
    words = ["re-use" if forecast == "none" else f"{forecast} forecast", spread]
    words += [] if between == "shallow" else [f"{between} steps"]
    return ", ".join([*words, "guidance reuse"] if guidance_reuse else words)


def _psnr(cell: Cell) -> float:
    return float(cell["psnr"]["mean"]) if cell["psnr"] is not None else 0.0
