"""An ablation to explore: grids of interval by branch, and the pictures and figures of one setting."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from DeepCache.config import DeepCacheConfig
from DeepCache.report.fidelity import IDENTICAL, FidelityGroup, Metric, fidelity_groups
from DeepCache.report.gallery import read_strip
from DeepCache.report.numerals import confidence, decibels, per_cent, seconds, times
from DeepCache.report.sources import Source, read_sources

__all__ = [
    "SHADES",
    "SHIPPED_ABLATION",
    "Choice",
    "ExploredGroup",
    "Explorer",
    "Grid",
    "Kind",
    "Sample",
    "Way",
    "grid_html",
]

SHIPPED_ABLATION = Path(__file__).with_name("ablation.json")
"""The ablation of the model in the box that comes with the package."""

SHADES = 9
"""How many colours a grid has: the classes `shade-0`, the lowest PSNR of the group, to `shade-8` in `explorer.css`."""

Titled = TypeVar("Titled")

_NONE = "–"


@dataclass(frozen=True)
class Way:
    """One way to draw that was measured: DeepCache with some settings, or fewer steps without caching.

    Args:
        cell: its cell in the result file, which has a PSNR.
        images: how many images were drawn.
        config: the settings of DeepCache; None for fewer steps.
    """

    cell: Mapping[str, Any]
    images: int
    config: DeepCacheConfig | None

    @property
    def label(self) -> str:
        """Its short name, unique in its group."""
        return str(self.cell["label"])

    @property
    def pattern(self) -> str:
        """One character a step; see `DeepCache.schedule.pattern_of`."""
        return str(self.cell["pattern"])

    @property
    def mac_share(self) -> float:
        """The U-Net's multiply-accumulates as a share of those without caching."""
        return float(self.cell["mac_share"])

    @property
    def speed_up(self) -> float:
        """Of the U-Net, by its multiply-accumulates."""
        return 1 / self.mac_share

    @property
    def psnr(self) -> float:
        """The mean PSNR against no caching, in dB."""
        return float(self.cell["psnr"]["mean"])

    @property
    def psnr_interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of that."""
        low, high = self.cell["psnr"]["confidence"]
        return float(low), float(high)

    @property
    def seconds(self) -> float:
        """What an image took, on average over one run."""
        return float(self.cell["seconds"]) / self.images

    @property
    def front(self) -> bool:
        """Whether it is on the Pareto front of its group."""
        return bool(self.cell["front"])


@dataclass(frozen=True)
class Kind:
    """What is alike in a grid of interval by branch.

    Args:
        forecast: as in `DeepCacheConfig`.
        skip_mode: as in `DeepCacheConfig`.
        guidance_reuse: as in `DeepCacheConfig`.

    Example:
        >>> Kind("none", "uniform", guidance_reuse=True).title
        're-use, uniform, guidance reuse'
    """

    forecast: str
    skip_mode: str
    guidance_reuse: bool

    @property
    def title(self) -> str:
        """In words."""
        words = ["re-use" if self.forecast == "none" else f"{self.forecast} forecast", self.skip_mode]
        return ", ".join([*words, "guidance reuse"] if self.guidance_reuse else words)


@dataclass(frozen=True)
class Grid:
    """Interval by branch, all else alike.

    Args:
        kind: what is alike.
        cells: what was measured, by interval and branch.
        psnr_range: the lowest and the highest PSNR of all grids of the group, so that their colours can be compared;
            identical images are left out.
    """

    kind: Kind
    cells: Mapping[tuple[int, int], Way]
    psnr_range: tuple[float, float]

    @property
    def intervals(self) -> list[int]:
        """The columns."""
        return sorted({interval for interval, _ in self.cells})

    @property
    def branches(self) -> list[int]:
        """The rows."""
        return sorted({branch for _, branch in self.cells})

    def way(self, interval: int, branch: int) -> Way:
        """The one at an interval and branch.

        Args:
            interval: the column.
            branch: the row.

        Returns:
            What was measured there.

        Raises:
            ValueError: it was not measured.

        Example:
            >>> group = Explorer.from_file(SHIPPED_ABLATION).groups[0]
            >>> group.grids[0].way(interval=3, branch=0).label
            'I=3 B=0'
        """
        found = self.cells.get((interval, branch))
        if found is None:
            raise ValueError(f"{self.kind.title}: interval {interval} with branch {branch} was not measured")
        return found


@dataclass(frozen=True)
class ExploredGroup:
    """All ways to draw with one scheduler and number of steps.

    Args:
        measured: the group of the ablation.
        model: what `load_pipeline` was given.
        ways: every way to draw that has a PSNR, the cheapest first.
    """

    measured: FidelityGroup
    model: str
    ways: Sequence[Way]

    @property
    def title(self) -> str:
        """Scheduler and steps."""
        return self.measured.title

    @property
    def scheduler(self) -> str | None:
        """The scheduler as `set_scheduler` takes it; None where it is the model's own."""
        name = str(self.measured.group["scheduler"])
        return None if name == "model" else name

    @property
    def steps(self) -> int:
        """The denoising steps."""
        return int(self.measured.group["steps"])

    @property
    def images(self) -> int:
        """How many images were drawn in each way."""
        return self.measured.images

    @property
    def deepcache(self) -> list[Way]:
        """Those with DeepCache, the cheapest first."""
        return [way for way in self.ways if way.config is not None]

    def fewer_steps_like(self, way: Way) -> Way | None:
        """Those fewer steps whose cost is nearest.

        Args:
            way: a way to draw of this group.

        Returns:
            The fewer steps; None where none were drawn.

        Example:
            >>> group = Explorer.from_file(SHIPPED_ABLATION).groups[0]
            >>> group.fewer_steps_like(group.named("I=3 B=0")).label
            '22 steps'
        """
        cell = self.measured.fewer_steps_like(way.cell)
        return None if cell is None else self.named(cell["label"])

    def named(self, label: str) -> Way:
        """The one with this label.

        Args:
            label: its label in the result file.

        Returns:
            The way to draw.

        Raises:
            ValueError: there is none.

        Example:
            >>> Explorer.from_file(SHIPPED_ABLATION).groups[0].named("I=3 B=0").config.cache_interval
            3
        """
        for way in self.ways:
            if way.label == label:
                return way
        raise ValueError(f"there is no {label!r} with {self.title}")

    @cached_property
    def grids(self) -> list[Grid]:
        """One for each forecast, schedule and guidance reuse. A plan or a schedule of its own is in none."""
        found: dict[Kind, dict[tuple[int, int], Way]] = {}
        for way in self.deepcache:
            config = way.config
            assert config is not None
            if config.plan is None and config.schedule is None:
                kind = Kind(config.forecast, config.skip_mode, config.guidance_reuse)
                found.setdefault(kind, {})[config.cache_interval, config.cache_branch_id] = way
        values = [way.psnr for cells in found.values() for way in cells.values()]
        values = [value for value in values if value < IDENTICAL] or [IDENTICAL]
        # In the order in which the file has them, and not by cost.
        order = [way["label"] for way in self.measured.group["cells"]]
        kinds = sorted(found, key=lambda kind: min(order.index(way.label) for way in found[kind].values()))
        return [Grid(kind, found[kind], (min(values), max(values))) for kind in kinds]

    def grid(self, title: str) -> Grid:
        """The grid whose kind has this title.

        Args:
            title: the title.

        Returns:
            The grid.

        Raises:
            ValueError: there is none.

        Example:
            >>> Explorer.from_file(SHIPPED_ABLATION).groups[0].grid("linear forecast, uniform").intervals
            [2, 3, 5, 8]
        """
        return _titled(title, {grid.kind.title: grid for grid in self.grids})


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
        groups: one for each scheduler and number of steps.
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
            groups = [_explored(source, measured) for measured in fidelity_groups(source)]
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

    def group(self, title: str) -> ExploredGroup:
        """The group of this title.

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
        return _titled(title, {group.title: group for group in self.groups})

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
        return [picture.image for picture in read_strip(self.source, name, group.images)]


def grid_html(grid: Grid, chosen: str = "") -> str:
    """A grid as an accessible table of HTML, each cell a button coloured by its PSNR; the styles are in `explorer.css`.

    Args:
        grid: the grid.
        chosen: the label of the cell that is marked as chosen.

    Returns:
        The table as HTML.

    Example:
        >>> grid = Explorer.from_file(SHIPPED_ABLATION).groups[0].grids[0]
        >>> html = grid_html(grid, chosen="I=3 B=0")
        >>> html.count("<button"), html.count('aria-pressed="true"')
        (12, 1)
    """
    caption = f"PSNR against no caching and share of the U-Net's multiply-accumulates: {grid.kind.title}"
    columns = "".join(f'<th scope="col">Interval {interval}</th>' for interval in grid.intervals)
    rows = "".join(
        f'<tr><th scope="row">Branch {branch}</th>'
        + "".join(f"<td>{_button(grid, interval, branch, chosen)}</td>" for interval in grid.intervals)
        + "</tr>"
        for branch in grid.branches
    )
    return (
        f'<div class="ablation-grid"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr><td></td>{columns}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _button(grid: Grid, interval: int, branch: int, chosen: str) -> str:
    way = grid.cells.get((interval, branch))
    if way is None:
        return '<span class="not-measured">not measured</span>'
    pressed = "true" if way.label == chosen else "false"
    psnr = "identical" if way.psnr >= IDENTICAL else f"{way.psnr:.1f} dB"
    front = '<small class="front">Pareto front</small>' if way.front else ""
    return (
        f'<button type="button" class="shade-{_shade(way.psnr, grid.psnr_range)}" data-interval="{interval}" '
        f'data-branch="{branch}" aria-pressed="{pressed}"><span class="for-readers">Interval {interval}, branch '
        f"{branch}: </span><b>{psnr}</b> <small>{escape(per_cent(way.mac_share))}</small> {front}</button>"
    )


def _shade(psnr: float, psnr_range: tuple[float, float]) -> int:
    low, high = psnr_range
    # One shade for all where there is no range.
    return min(SHADES - 1, math.floor(SHADES * (psnr - low) / ((high - low) or math.inf)))


def _explored(source: Source, measured: FidelityGroup) -> ExploredGroup:
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
    return ExploredGroup(measured, str(source.result["settings"]["model"]), ways)


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
        ["Full and shallow steps", *(_kinds_of_steps(one.pattern) for one in ways), f"{group.steps} full"],
        ["Pareto front", *(_on_the_front(one) for one in ways), _NONE],
    ]


def _metric(cell: Mapping[str, Any], metric: Metric) -> str:
    found = cell.get(metric.key)
    return _NONE if found is None else confidence(found, metric.digits)


def _kinds_of_steps(pattern: str) -> str:
    full = pattern.count("F")
    return f"{full} full" if full == len(pattern) else f"{full} full, {len(pattern) - full} shallow"


def _on_the_front(way: Way) -> str:
    better = way.cell["dominated_by"]
    if better is None:
        return "on it"
    return f"no: {better['label']} is {decibels(better['psnr_gain'])} dB nearer at the same cost or less"


def _value(way: Way, number: int) -> float | None:
    values = way.cell["psnr"]["values"]
    return float(values[number]) if number < len(values) else None


def _titled(title: str, found: Mapping[str, Titled]) -> Titled:
    if title not in found:
        raise ValueError(f"there is no {title!r}; there are {'; '.join(found)}")
    return found[title]
