"""What an ablation measured with one scheduler, number of steps and guidance scale; its grids of interval by branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from DeepCache.bench.ablation_cells import guidance_in_words
from DeepCache.config import DeepCacheConfig
from DeepCache.report.fidelity import IDENTICAL, FidelityGroup, kind_in_words

__all__ = ["ExploredGroup", "Grid", "Kind", "Way", "titled"]

Titled = TypeVar("Titled")


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
    def steps(self) -> int:
        """The denoising steps."""
        return int(self.cell["steps"])

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
        between: as in `DeepCacheConfig`.
        threshold: as in `DeepCacheConfig`; None unless the schedule is adaptive.

    Example:
        >>> Kind("none", "uniform", guidance_reuse=True).title
        're-use, uniform, guidance reuse'
    """

    forecast: str
    skip_mode: str
    guidance_reuse: bool
    between: str = "shallow"
    threshold: float | None = None

    @classmethod
    def of(cls, config: DeepCacheConfig) -> Kind:
        """That of settings without a plan or a schedule of their own."""
        threshold = config.threshold if config.skip_mode == "adaptive" else None
        return cls(config.forecast, config.skip_mode, config.guidance_reuse, config.between, threshold)

    @property
    def title(self) -> str:
        """In words."""
        return kind_in_words(self.forecast, self.skip_mode, self.guidance_reuse, self.between, self.threshold)


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
            >>> from DeepCache.app.explorer import SHIPPED_ABLATION, Explorer
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
    """All ways to draw with one scheduler, number of steps and guidance scale.

    Args:
        measured: the group of the ablation.
        model: what `load_pipeline` was given.
        title: scheduler and steps, unique among the groups of its guidance scale.
        ways: every way to draw that has a PSNR, the cheapest first.
    """

    measured: FidelityGroup
    model: str
    title: str
    ways: Sequence[Way]

    @property
    def guidance(self) -> float | None:
        """The guidance scale; None where the pipeline takes none."""
        return self.measured.guidance

    @property
    def where(self) -> str:
        """Title and guidance scale, for a sentence."""
        return self.title + guidance_in_words(self.guidance)

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
            >>> from DeepCache.app.explorer import SHIPPED_ABLATION, Explorer
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
            >>> from DeepCache.app.explorer import SHIPPED_ABLATION, Explorer
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
                kind = Kind.of(config)
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
            >>> from DeepCache.app.explorer import SHIPPED_ABLATION, Explorer
            >>> Explorer.from_file(SHIPPED_ABLATION).groups[0].grid("linear forecast, uniform").intervals
            [2, 3, 5, 8]
        """
        return titled(title, {grid.kind.title: grid for grid in self.grids})


def titled(title: str, found: Mapping[str, Titled]) -> Titled:
    """The one of this title.

    Args:
        title: the title.
        found: all of them.

    Returns:
        The one.

    Raises:
        ValueError: there is none.

    Example:
        >>> titled("b", {"a": 1, "b": 2})
        2
    """
    if title not in found:
        raise ValueError(f"there is no {title!r}; there are {'; '.join(found)}")
    return found[title]
