"""Draws the prompts under a schedule and compares with the images without DeepCache; remembers what it has drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import torch

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.attach import apply_deepcache, remove_deepcache
from DeepCache.generation.finite import check_finite
from DeepCache.generation.painter import Painter
from DeepCache.metrics import psnr, ssim
from DeepCache.schedule import StepSchedule

__all__ = ["IDENTICAL", "Evaluations", "MeanEvaluations", "Measured", "mean_of"]

IDENTICAL = 120.0
"""The PSNR in dB that two identical images count as, so that a mean can be taken."""
_REFERENCE = "without DeepCache"


@dataclass(frozen=True)
class Measured:
    """What generating all prompts in one way gave.

    Args:
        cost: multiply-accumulates of the U-Net as a share of those without DeepCache.
        psnr: mean over the images, in dB.
        ssim: mean over the images.
        seconds: what the pipeline took.
    """

    cost: float
    psnr: float
    ssim: float
    seconds: float


class Evaluations:
    """Draws and measures at one guidance scale, each setting once; what was measured is kept in a file of one JSON
    object a line.

    Args:
        painter: draws the prompts.
        path: the file; what is there already is not drawn again. It may hold other guidance scales too.
        name: tells the prompts from others in the same file.
        on_work: told the share of a drawing without DeepCache that was done.
    """

    def __init__(self, painter: Painter, path: Path, name: str, on_work: Callable[[float], None]) -> None:
        self.painter = painter
        self._path = path
        self._name = name
        self._on_work = on_work
        self._reference: torch.Tensor | None = None
        self._known: dict[str, Measured] = {}
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if text and not text.endswith("\n"):
            # The run was stopped while it wrote the last line.
            text = text[: text.rfind("\n") + 1]
            path.write_text(text, encoding="utf-8")
        for line in text.splitlines():
            entry = json.loads(line)
            if (entry["prompts"], entry["guidance"]) == (name, painter.guidance):
                self._known[entry["key"]] = Measured(**entry["measured"])

    @property
    def reference(self) -> torch.Tensor:
        """The images without DeepCache."""
        if self._reference is None:
            self.set_reference(*self._timed())
            self._on_work(1.0)
        assert self._reference is not None
        return self._reference

    def set_reference(self, images: torch.Tensor, seconds: float) -> None:
        """Takes the images without DeepCache from where they were drawn already.

        Raises:
            NotFiniteError: an image has NaN or infinite values.
        """
        check_finite(images, "the model without DeepCache")
        self._reference = images
        if _REFERENCE not in self._known:
            self._remember(_REFERENCE, Measured(1.0, IDENTICAL, 1.0, seconds))

    @property
    def seconds_of_reference(self) -> float:
        """What drawing without DeepCache took."""
        if _REFERENCE not in self._known:
            _ = self.reference
        return self._known[_REFERENCE].seconds

    def known(self, schedule: StepSchedule) -> bool:
        """Whether the schedule was measured already."""
        return _key(schedule) in self._known

    def schedule(self, schedule: StepSchedule) -> Measured:
        """Measures a schedule."""
        return self._measure(_key(schedule), lambda: self._draw(schedule))

    def fewer_steps(self, steps: int) -> Measured:
        """Measures that many steps without DeepCache."""
        return self._measure(f"{steps} steps", lambda: (*self._timed(steps), steps / self.painter.steps))

    def _draw(self, schedule: StepSchedule) -> tuple[torch.Tensor, float, float]:
        pipe = self.painter.pipe
        engine = apply_deepcache(pipe, DeepCacheConfig(schedule=schedule))
        try:
            images, seconds = self._timed()
        finally:
            remove_deepcache(pipe)
        stats = engine.stats
        if stats.mac_share is None:
            raise ValueError(f"the cost of this model's steps cannot be counted: {stats.uncounted}")
        return images, seconds, stats.mac_share

    def _timed(self, steps: int | None = None) -> tuple[torch.Tensor, float]:
        start = perf_counter()
        images = self.painter.draw(steps)
        return images, perf_counter() - start

    def _measure(self, key: str, draw: Callable[[], tuple[torch.Tensor, float, float]]) -> Measured:
        """Images, seconds and cost are what `draw` gives."""
        if key not in self._known:
            reference = self.reference
            images, seconds, cost = draw()
            if images.isfinite().all():
                fidelity = fmean(min(value, IDENTICAL) for value in psnr(images, reference).tolist())
                similarity = fmean(ssim(images, reference).tolist())
            else:
                # Nothing is further from the original than what is no image.
                fidelity = similarity = 0.0
            self._remember(key, Measured(cost, fidelity, similarity, seconds))
            self._on_work(cost)
        return self._known[key]

    def _remember(self, key: str, measured: Measured) -> None:
        self._known[key] = measured
        entry: dict[str, Any] = {
            "prompts": self._name,
            "guidance": self.painter.guidance,
            "key": key,
            "measured": asdict(measured),
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


class MeanEvaluations:
    """Measures at several guidance scales and takes the mean.

    Args:
        each: the evaluations at each scale, of as many prompts.
    """

    def __init__(self, each: Sequence[Evaluations]) -> None:
        self.each = tuple(each)

    @property
    def seconds_of_reference(self) -> float:
        """What drawing without DeepCache took, at all scales together."""
        return sum(each.seconds_of_reference for each in self.each)

    def known(self, schedule: StepSchedule) -> bool:
        """Whether the schedule was measured already, at all scales."""
        return all(each.known(schedule) for each in self.each)

    def schedule(self, schedule: StepSchedule) -> Measured:
        """Measures a schedule."""
        return mean_of([each.schedule(schedule) for each in self.each])

    def fewer_steps(self, steps: int) -> Measured:
        """Measures that many steps without DeepCache."""
        return mean_of([each.fewer_steps(steps) for each in self.each])


def mean_of(measured: Sequence[Measured]) -> Measured:
    """The mean of what was measured at several guidance scales; of the seconds the sum.

    Example:
        >>> mean_of([Measured(0.5, 30.0, 0.9, 1.0), Measured(0.5, 20.0, 0.7, 2.0)])
        Measured(cost=0.5, psnr=25.0, ssim=0.8, seconds=3.0)
    """
    return Measured(
        cost=fmean(each.cost for each in measured),
        psnr=fmean(each.psnr for each in measured),
        ssim=fmean(each.ssim for each in measured),
        seconds=sum(each.seconds for each in measured),
    )


def _key(schedule: StepSchedule) -> str:
    # Each thing that a schedule says of its steps is a line.
    return " ".join(str(line) for name, line in schedule.to_dict().items() if name != "kind")
