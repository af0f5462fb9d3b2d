"""An ablation to explore: the pictures and figures of one setting, with what it is to be compared with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from DeepCache.app.measured_group import ExploredGroup, Way, titled
from DeepCache.config import DeepCacheConfig
from DeepCache.report.fidelity import FidelityGroup, Metric, fidelity_groups
from DeepCache.report.gallery import read_strip
from DeepCache.report.numerals import confidence, decibels, per_cent, seconds, times
from DeepCache.report.sources import Source, read_sources

__all__ = ["SHIPPED_ABLATION", "Choice", "Explorer", "Sample"]

SHIPPED_ABLATION = Path(__file__).with_name("ablation.json")
"""The ablation of the model in the box that comes with the package."""

_NONE = "–"


@dataclass(frozen=True)
class Sample:
    """One prompt, drawn in three ways.

    Args:
        prompt: the prompt.
        cached: with DeepCache.
        original: without caching.
        fewer_steps: without caching, with fewer steps at the nearest cost; None where there is none.
        psnr: of `cached` against `original`, in dB; None where it was not written down.
        fewer_steps_psnr: of `fewer_steps`.
    """

    prompt: str
    cached: Image.Image
    original: Image.Image
    fewer_steps: Image.Image | None
    psnr: float | None
    fewer_steps_psnr: float | None


@dataclass(frozen=True)
class Choice:
    """One setting of DeepCache, with what it is to be compared with.

    Args:
        way: the setting.
        fewer_steps: fewer steps without caching, at the nearest cost.
        columns: what the columns of `rows` are: the setting, fewer steps where there are any, and no caching.
        rows: the figures as text, each with its name before those of the columns.
        samples: its pictures, those without caching and those of fewer steps.
        note: why there are no samples, or none of fewer steps; empty where there are.
    """

    way: Way
    fewer_steps: Way | None
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    samples: Sequence[Sample]
    note: str


@dataclass(frozen=True)
class Explorer:
    """An ablation, read and checked.

    Args:
        source: the result file.
        groups: one for each scheduler, number of steps and guidance scale.
    """

    source: Source
    groups: Sequence[ExploredGroup]

    @classmethod
    def from_file(cls, path: str | Path) -> Explorer:
        """Reads a result of `deepcache ablate`.

        Args:
            path: the file; its pictures are read from its folder and nowhere else.

        Returns:
            The ablation.

        Raises:
            ValueError: it is no such result, is damaged, has no prompts, holds nothing of DeepCache yet, or names a
                picture outside its folder.
            OSError: it cannot be read.
            ImportError: jsonschema is not installed.

        Example:
            >>> explorer = Explorer.from_file(SHIPPED_ABLATION)
            >>> group = explorer.group("DDIMScheduler, 50 steps")
            >>> grid = group.grid("linear forecast, uniform")
            >>> grid.intervals, grid.branches, grid.way(3, 0).label
            ([2, 3, 5, 8], [0, 1, 3], 'I=3 B=0 linear')
            >>> choice = explorer.choose(group, "I=3 B=0 linear")
            >>> choice.fewer_steps.label, choice.samples[0].prompt, choice.samples[0].cached.size
            ('22 steps', 'a big orange star on grass', (64, 64))
        """
        (source,) = read_sources([Path(path)])
        if source.is_benchmark:
            raise ValueError(f"{str(path)!r} is a benchmark; give a result of `deepcache ablate`")
        if not source.result["settings"]["prompts"]:
            raise ValueError(f"{str(path)!r} is damaged: it has no prompts")
        # The pictures lie beside the file itself, also where it is reached by a link.
        source = replace(source, path=source.path.resolve())
        try:
            found = fidelity_groups(source)
            groups = [_explored(source, one, title) for one, title in zip(found, _titles(found), strict=True)]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{str(path)!r} is damaged: {error}") from error
        groups = [group for group in groups if group.deepcache]
        if not groups:
            raise ValueError(f"{str(path)!r} holds nothing of DeepCache yet: let `deepcache ablate` finish it")
        return cls(source, groups)

    @property
    def model(self) -> str:
        """The model that was measured, as `load_pipeline` takes it."""
        return str(self.source.result["settings"]["model"])

    @property
    def guidance_scales(self) -> list[float | None]:
        """Those that were measured, in the order of the file; None where the pipeline takes none."""
        return list(dict.fromkeys(group.guidance for group in self.groups))

    def group(self, title: str) -> ExploredGroup:
        """The group of this title; of several guidance scales that of the first.

        Args:
            title: scheduler and steps.

        Returns:
            The group.

        Raises:
            ValueError: there is none.

        Example:
            >>> Explorer.from_file(SHIPPED_ABLATION).group("DDIMScheduler, 50 steps").images
            24
        """
        first = self.groups[0].guidance
        return titled(title, {group.title: group for group in self.groups if group.guidance == first})

    def choose(self, group: ExploredGroup, label: str) -> Choice:
        """A setting of DeepCache, with its pictures and figures and those to compare it with.

        Args:
            group: one of `groups`.
            label: the label of the setting.

        Returns:
            The setting, what it is compared with, their figures and their pictures.

        Raises:
            ValueError: there is no such setting.

        Example:
            >>> explorer = Explorer.from_file(SHIPPED_ABLATION)
            >>> choice = explorer.choose(explorer.groups[0], "I=3 B=0")
            >>> choice.columns, len(choice.samples)
            (['I=3 B=0', '22 steps, no caching', 'no caching'], 4)
        """
        way = group.named(label)
        if way.config is None:
            raise ValueError(f"{label!r} is drawn without DeepCache")
        fewer = group.fewer_steps_like(way)
        samples, note = self._samples(group, way, fewer)
        columns = [way.label, *([f"{fewer.label}, no caching"] if fewer else []), "no caching"]
        return Choice(way, fewer, columns, _rows(group, way, fewer), samples, note)

    def _samples(self, group: ExploredGroup, way: Way, fewer: Way | None) -> tuple[list[Sample], str]:
        """The pictures, and what is to be said of those that are not there."""
        try:
            cached = self._pictures(group, way.label, way.cell["samples"])
            originals = self._pictures(group, "no caching", (group.measured.reference or {}).get("samples"))
        except (OSError, ValueError) as error:
            return [], f"No pictures: {error}."
        note = ""
        fewer_pictures: Sequence[Image.Image | None] = [None] * len(originals)
        if fewer is not None:
            try:
                fewer_pictures = self._pictures(group, fewer.label, fewer.cell["samples"])
            except (OSError, ValueError) as error:
                note = f"No pictures of fewer steps: {error}."
        prompts = self.source.result["settings"]["prompts"]
        # As many as all strips hold.
        pictures = zip(cached, originals, fewer_pictures, strict=False)
        samples = [
            Sample(
                prompts[number % len(prompts)],
                *three,
                _value(way, number),
                None if fewer is None else _value(fewer, number),
            )
            for number, three in enumerate(pictures)
        ]
        return samples, note

    def _pictures(self, group: ExploredGroup, label: str, name: str | None) -> list[Image.Image]:
        if name is None:
            raise ValueError(f"those of {label} were not kept")
        return read_strip(self.source, name, group.images)


def _titles(groups: Sequence[FidelityGroup]) -> list[str]:
    """Scheduler and steps of every group, without the guidance scale, which is chosen in a field of its own; of two
    that are alike, what was asked for as well."""
    alike = [(one.group["scheduler_class"], one.group["steps"], one.guidance) for one in groups]
    return [
        f"{key[0]}, {key[1]} steps" + (f", asked for as {one.group['scheduler']}" if alike.count(key) > 1 else "")
        for one, key in zip(groups, alike, strict=True)
    ]


def _explored(source: Source, measured: FidelityGroup, title: str) -> ExploredGroup:
    """A group with the settings of each cell as `DeepCacheConfig`.

    Raises:
        ValueError: a value is out of its range, or a path leads out of the folder.
        TypeError: a value in the settings is of the wrong type.
    """
    folder = source.path.parent
    for one in [measured.reference or {}, *measured.cells]:
        name = one.get("samples")
        if name is not None and not (folder / name).resolve().is_relative_to(folder):
            raise ValueError(f"the path {name!r} leads out of its folder")
    ways = []
    for cell in measured.cells:
        if not 0 < cell["mac_share"] < math.inf:
            raise ValueError(f"the cost of {cell['label']!r} must be above 0, got {cell['mac_share']}")
        config = DeepCacheConfig.from_json(json.dumps(cell["config"])) if cell["method"] == "DeepCache" else None
        if cell["psnr"] is not None:
            ways.append(Way(cell, measured.images, config))
    model = str(source.result["settings"]["model"])
    return ExploredGroup(measured, model, title, ways)


def _rows(group: ExploredGroup, way: Way, fewer: Way | None) -> list[list[str]]:
    """The figures as text: the setting, fewer steps where there are any, and no caching."""
    ways = [way] if fewer is None else [way, fewer]
    reference = group.measured.reference
    whole = _NONE if reference is None else f"{seconds(reference['seconds'] / group.images)} s"
    metrics = [
        [
            f"{metric.name}, mean ± 95 % confidence interval",
            *(_metric(one.cell, metric) for one in ways),
            _metric(reference or {}, metric),
        ]
        for metric in group.measured.metrics
    ]
    return [
        ["Multiply-accumulates of the U-Net", *(per_cent(one.mac_share) for one in ways), per_cent(1)],
        ["Speed-up of the U-Net by them", *(times(one.speed_up) for one in ways), times(1)],
        *metrics,
        ["Seconds per image, one run", *(f"{seconds(one.seconds)} s" for one in ways), whole],
        ["Steps", *(_kinds_of_steps(one.pattern) for one in ways), f"{group.steps} full"],
        ["Pareto front", *(_on_the_front(one) for one in ways), _NONE],
    ]


def _metric(cell: Mapping[str, Any], metric: Metric) -> str:
    found = cell.get(metric.key)
    return _NONE if found is None else confidence(found, metric.digits)


def _kinds_of_steps(pattern: str) -> str:
    full, skipped = pattern.count("F"), pattern.count("-")
    kinds = {"full": full, "shallow": len(pattern) - full - skipped, "skipped": skipped}
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)


def _on_the_front(way: Way) -> str:
    better = way.cell["dominated_by"]
    if better is None:
        return "on it"
    return f"no: {better['label']} is {decibels(better['psnr_gain'])} dB nearer at the same cost or less"


def _value(way: Way, number: int) -> float | None:
    values = way.cell["psnr"]["values"]
    return float(values[number]) if number < len(values) else None
