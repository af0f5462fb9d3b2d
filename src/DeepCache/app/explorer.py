"""An ablation to explore: the images and figures of each of its settings, and what to compare them with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from DeepCache.app.step_strip import kinds_of_steps
from DeepCache.bench.ablation_cells import guidance_in_words
from DeepCache.config import DeepCacheConfig
from DeepCache.report.fidelity import FidelityGroup, fidelity_groups
from DeepCache.report.gallery import read_strip
from DeepCache.report.heat_map import HeatMap
from DeepCache.report.numerals import DASH, confidence, decibels, per_cent, seconds, times
from DeepCache.report.sources import Source, read_sources

__all__ = ["SHIPPED_ABLATION", "Choice", "ExploredGroup", "Explorer", "Sample", "config_of"]

SHIPPED_ABLATION = Path(__file__).with_name("ablation.json.gz")
"""The ablation of the bundled model."""

Cell = Mapping[str, Any]


class Sample(NamedTuple):
    """The images of a prompt, each with its caption and PSNR: without caching, with DeepCache, and with fewer steps."""

    prompt: str
    images: list[tuple[str, Image.Image, float | None]]


class Choice(NamedTuple):
    """Settings of DeepCache, and fewer steps without caching at the closest cost to compare them with.

    Args:
        cell: the settings in the result file.
        columns: the settings, fewer steps (if measured), no caching.
        rows: the figures as text, each after its name.
        samples: the images.
        note: why images are missing.
    """

    cell: Cell
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    samples: Sequence[Sample]
    note: str


@dataclass(frozen=True)
class ExploredGroup:
    """Measurements with one scheduler, number of steps and guidance scale.

    Args:
        measured: the group in the result file.
        model: the model, as `load_pipeline` accepts it.
        title: scheduler and steps, unique at each guidance scale.
    """

    measured: FidelityGroup
    model: str
    title: str

    @property
    def guidance(self) -> float | None:
        """The guidance scale; None if the pipeline has none."""
        return self.measured.guidance

    @property
    def where(self) -> str:
        """Title and guidance scale, for a sentence."""
        return self.title + guidance_in_words(self.guidance)

    @property
    def scheduler(self) -> str | None:
        """The scheduler, as `set_scheduler` accepts it; None for the model's own."""
        name = str(self.measured.group["scheduler"])
        return None if name == "model" else name

    @cached_property
    def cells(self) -> list[Cell]:
        """All settings whose PSNR was measured, the cheapest first."""
        return [cell for cell in self.measured.cells if cell["psnr"] is not None]

    @property
    def deepcache(self) -> list[Cell]:
        """Those with DeepCache."""
        return [cell for cell in self.cells if cell["method"] == "DeepCache"]

    @cached_property
    def heat_maps(self) -> dict[str, HeatMap]:
        """PSNR and cost by interval and branch, for each kind of settings by title."""
        return {each.kind.title: each for each in self.measured.heat_maps}

    def named(self, label: str) -> Cell:
        """The settings with this label."""
        found = next((cell for cell in self.cells if cell["label"] == label), None)
        if found is None:
            raise ValueError(f"{label!r} was not measured with {self.title}")
        return found


@dataclass(frozen=True)
class Explorer:
    """An ablation, read and checked."""

    source: Source
    groups: Sequence[ExploredGroup]

    @classmethod
    def from_file(cls, path: str | Path) -> Explorer:
        """Reads a result of `deepcache ablate`, and images from its folder and nowhere else.

        Raises:
            ValueError: the file is not such a result, is damaged, or has no measurement of DeepCache yet.
            OSError: the file cannot be read.
            ImportError: jsonschema is not installed.

        Example:
            >>> explorer = Explorer.from_file(SHIPPED_ABLATION)
            >>> group = explorer.group("DDIMScheduler, 50 steps")
            >>> heat_map = group.heat_maps["linear forecast, uniform"]
            >>> heat_map.intervals, heat_map.branches, heat_map.cells[3, 0]["label"]
            ([2, 3, 5, 8], [0, 1, 3], 'I=3 B=0 linear')
            >>> choice = explorer.choose(group, "I=3 B=0")
            >>> choice.columns, len(choice.samples)
            (['I=3 B=0', '22 steps, no caching', 'no caching'], 4)
            >>> [caption for caption, *_ in choice.samples[0].images]
            ['No caching', 'DeepCache', '22 steps']
        """
        (source,) = read_sources([Path(path)])
        if source.is_benchmark:
            raise ValueError(f"{str(path)!r} is a benchmark. Give a result of `deepcache ablate`")
        if not source.result["settings"]["prompts"]:
            raise ValueError(f"{str(path)!r} is damaged: it has no prompts")
        # The images are beside the file itself, also if the path is a link.
        source = replace(source, path=source.path.resolve())
        try:
            measured = fidelity_groups(source)
            for cell in (cell for each in measured for cell in each.cells):
                if not 0 < cell["mac_share"] < math.inf:
                    raise ValueError(f"the cost of {cell['label']!r} must be above 0, got {cell['mac_share']}")
                config_of(cell)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{str(path)!r} is damaged: {error}") from error
        model = str(source.result["settings"]["model"])
        groups = [ExploredGroup(each, model, title) for each, title in zip(measured, _titles(measured), strict=True)]
        groups = [group for group in groups if group.deepcache]
        if not groups:
            raise ValueError(f"{str(path)!r} has no measurement of DeepCache yet. Let `deepcache ablate` finish")
        return cls(source, groups)

    @property
    def guidance_scales(self) -> list[float | None]:
        """The guidance scales in the order of the file; None if the pipeline has none."""
        return list(dict.fromkeys(group.guidance for group in self.groups))

    def group(self, title: str, guidance: float | None = None) -> ExploredGroup:
        """The group with this title at a guidance scale, by default the first one."""
        scale = self.groups[0].guidance if guidance is None else guidance
        found = {group.title: group for group in self.groups if group.guidance == scale}
        if title not in found:
            raise ValueError(f"there is no group {title!r}. Choose one of: {'; '.join(found)}")
        return found[title]

    def choose(self, group: ExploredGroup, label: str) -> Choice:
        """The settings of DeepCache with this label."""
        cell = group.named(label)
        if cell["method"] != "DeepCache":
            raise ValueError(f"{label!r} does not use DeepCache")
        fewer = group.measured.fewer_steps_like(cell)
        shown = {"No caching": group.measured.reference, "DeepCache": cell}
        if fewer is not None:
            shown[fewer["label"]] = fewer
        samples, note = self._samples(group, shown)
        columns = [label, *([f"{fewer['label']}, no caching"] if fewer else []), "no caching"]
        return Choice(cell, columns, _rows(group, cell, fewer), samples, note)

    def _samples(self, group: ExploredGroup, shown: Mapping[str, Cell | None]) -> tuple[list[Sample], str]:
        """The images of these settings by caption, and why some are missing."""
        strips, notes = {}, []
        for caption, cell in shown.items():
            try:
                images = read_strip(self.source, None if cell is None else cell["samples"], group.measured.images)
            except (OSError, ValueError) as error:
                notes.append(f"Images of {caption} are missing: {error}.")
                continue
            values = ((cell or {}).get("psnr") or {}).get("values", [])
            strips[caption] = [
                (caption, image, values[number] if number < len(values) else None)
                for number, image in enumerate(images)
            ]
        if not {"No caching", "DeepCache"} <= strips.keys():
            return [], " ".join(notes)
        prompts = self.source.result["settings"]["prompts"]
        # As many as all strips have.
        rows = zip(*strips.values(), strict=False)
        return [Sample(prompts[row % len(prompts)], list(each)) for row, each in enumerate(rows)], " ".join(notes)


def _titles(groups: Sequence[FidelityGroup]) -> list[str]:
    """Scheduler and steps of each group; the guidance scale has a field of its own."""
    keys = [(one.group["scheduler_class"], one.group["steps"], one.guidance) for one in groups]
    return [
        f"{key[0]}, {key[1]} steps" + (f", requested as {one.group['scheduler']}" if keys.count(key) > 1 else "")
        for one, key in zip(groups, keys, strict=True)
    ]


def config_of(cell: Cell) -> DeepCacheConfig:
    """The settings of DeepCache of a cell; an interval of 1 for fewer steps."""
    if cell["method"] != "DeepCache":
        return DeepCacheConfig(cache_interval=1)
    return DeepCacheConfig.from_json(json.dumps(cell["config"]))


def _rows(group: ExploredGroup, cell: Cell, fewer: Cell | None) -> list[list[str]]:
    """The figures as text: of the settings, of fewer steps (if measured), and without caching."""
    cells = [cell] if fewer is None else [cell, fewer]
    reference: Cell = group.measured.reference or {}
    images = group.measured.images

    def row(name: str, text: Callable[[Cell], str], whole: str) -> list[str]:
        return [name, *(text(each) for each in cells), whole]

    def metric(key: str, digits: int, each: Cell) -> str:
        return DASH if each.get(key) is None else confidence(each[key], digits)

    time = f"{seconds(reference['seconds'] / images)} s" if reference else DASH
    steps = group.measured.group["steps"]
    return [
        row("MACs of the U-Net", lambda each: per_cent(each["mac_share"]), per_cent(1)),
        row("Speed-up by MACs", lambda each: times(1 / each["mac_share"]), times(1)),
        *(
            [
                f"{each.name}, mean ± 95 % confidence interval",
                *(metric(each.key, each.digits, one) for one in [*cells, reference]),
            ]
            for each in group.measured.metrics
        ),
        row("Seconds per image, one run", lambda each: f"{seconds(each['seconds'] / images)} s", time),
        row("Steps", lambda each: kinds_of_steps(each["pattern"]), f"{steps} full"),
        row("Pareto front", _on_the_front, DASH),
    ]


def _on_the_front(cell: Cell) -> str:
    better = cell["dominated_by"]
    if better is None:
        return "on it"
    return f"no: {better['label']} has {decibels(better['psnr_gain'])} dB more at the same cost or less"
