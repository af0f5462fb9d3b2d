"""The measurements of an ablation, in groups of one guidance scale, scheduler and number of steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from DeepCache.bench.ablation_cells import guidance_in_words
from DeepCache.bench.summary import paired
from DeepCache.report.heat_map import IDENTICAL, Cell, HeatMap, Kind, heat_maps
from DeepCache.report.sources import Source

__all__ = [
    "IDENTICAL",
    "METRICS",
    "FidelityGroup",
    "Metric",
    "fidelity_groups",
    "kind_in_words",
    "unfinished_groups",
]


class Metric(NamedTuple):
    """A metric: its key in result files, its name, and the decimals it is shown with."""

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
class FidelityGroup:
    """All settings at one guidance scale, with one scheduler and number of steps.

    Args:
        title: scheduler and steps, and the guidance scale if the ablation has several.
        group: the group of the result file.
        images: the number of images per setting.
        batch: the number of images per pipeline call.
        missing: requested settings that are not measured yet.
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
        """The guidance scale; None if the pipeline has none."""
        guidance: float | None = self.group["guidance"]
        return guidance

    @property
    def cells(self) -> list[Cell]:
        """All settings, from the cheapest."""
        return sorted(
            self.group["cells"],
            key=lambda cell: (cell["mac_share"], -cell["psnr"]["mean"] if cell["psnr"] is not None else 0),
        )

    @property
    def front(self) -> list[Cell]:
        """The Pareto front, from the cheapest."""
        return [cell for cell in self.cells if cell["front"]]

    @property
    def deepcache(self) -> list[Cell]:
        """The settings of DeepCache, from the cheapest."""
        return [cell for cell in self.cells if cell["method"] == "DeepCache"]

    @property
    def fewer_steps(self) -> list[Cell]:
        """Fewer steps without caching, from the cheapest."""
        return [cell for cell in self.cells if cell["method"] == "fewer steps"]

    @property
    def metrics(self) -> list[Metric]:
        """The metrics that were measured."""
        found = [*self.group["cells"], self.reference or {}]
        return [metric for metric in METRICS if any(cell.get(metric.key) is not None for cell in found)]

    @property
    def heat_maps(self) -> list[HeatMap]:
        """A heat map for each kind of settings."""
        return heat_maps(self.group["cells"])

    def fewer_steps_like(self, cell: Cell) -> Cell | None:
        """The fewer steps whose cost is closest to that of a cell."""
        fewer = [other for other in self.fewer_steps if other["psnr"] is not None]
        return min(fewer, key=lambda other: abs(other["mac_share"] - cell["mac_share"]), default=None)

    def over_fewer_steps(self, cell: Cell) -> Mapping[str, Any] | None:
        """The gain of a cell of DeepCache over fewer steps at the closest cost.

        Returns:
            `label` of the fewer steps, `mean` and 95 % `confidence` of the difference of PSNR in dB, image by image;
            None for fewer steps, and if either was not measured.
        """
        fewer = self.fewer_steps_like(cell)
        if fewer is None or cell["psnr"] is None or cell["method"] != "DeepCache":
            return None
        return {"label": fewer["label"], **paired(cell["psnr"]["values"], fewer["psnr"]["values"])}

    def fewer_steps_win(self, cell: Cell) -> bool:
        """Whether fewer steps at the closest cost have the higher PSNR, with 95 % confidence."""
        gain = self.over_fewer_steps(cell)
        return gain is not None and bool(gain["confidence"][1] < 0)


def fidelity_groups(source: Source) -> list[FidelityGroup]:
    """The groups of an ablation, in the order of the file."""
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
            title += f", requested as {group['scheduler']}"
        there = {cell["label"] for cell in group["cells"]}
        missing = [label for label in group["labels"] if label not in there]
        if all(cell["method"] == "DeepCache" for cell in group["cells"]):
            missing.append("fewer steps")
        groups.append(FidelityGroup(title, group, images, settings["batch"], missing))
    return groups


def unfinished_groups(source: Source) -> int:
    """The number of groups of an ablation that are not finished."""
    return sum(group.reference is None or bool(group.missing) for group in fidelity_groups(source))


def kind_in_words(
    forecast: str, skip_mode: str, guidance_reuse: bool, between: str = "shallow", threshold: float | None = None
) -> str:
    """`Kind.title`."""
    return Kind(forecast, skip_mode, guidance_reuse, between, threshold).title
