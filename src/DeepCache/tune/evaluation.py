"""Generates the prompts with a schedule and compares with the images without DeepCache; each schedule only once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from time import perf_counter

import torch

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.attach import apply_deepcache, remove_deepcache
from DeepCache.generation.batch_sampler import BatchSampler
from DeepCache.generation.finite import check_finite
from DeepCache.metrics import psnr, ssim
from DeepCache.schedule import StepSchedule
from DeepCache.tune.settings import IDENTICAL

__all__ = ["Evaluations", "MeanEvaluations", "Measured", "mean_of"]

_REFERENCE = "without DeepCache"


@dataclass(frozen=True)
class Measured:
    """Figures of one way to generate all prompts: the cost as a share of that without DeepCache, means over the images
    (PSNR in dB), and the seconds of the pipeline."""

    cost: float
    psnr: float
    ssim: float
    seconds: float


class Evaluations:
    """Generates and measures at one guidance scale.

    Everything is saved in a file of one JSON object per line, under a name that distinguishes the prompts from others
    in the same file. `on_work` is called with the cost of each run.
    """

    def __init__(self, sampler: BatchSampler, path: Path, name: str, on_work: Callable[[float], None]) -> None:
        self.sampler = sampler
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
            if (entry["prompts"], entry["guidance"]) == (name, sampler.guidance):
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
        """Sets the images without DeepCache. Raises `NotFiniteError` if one has NaN or infinite values."""
        check_finite(images, "the model without DeepCache")
        self._reference = images
        if _REFERENCE not in self._known:
            self._save(_REFERENCE, Measured(1.0, IDENTICAL, 1.0, seconds))

    @property
    def seconds_of_reference(self) -> float:
        """The seconds without DeepCache."""
        if _REFERENCE not in self._known:
            _ = self.reference
        return self._known[_REFERENCE].seconds

    def known(self, schedule: StepSchedule) -> bool:
        """Whether the schedule was measured already."""
        return _key(schedule) in self._known

    def schedule(self, schedule: StepSchedule) -> Measured:
        """Measures a schedule."""
        return self._measure(_key(schedule), lambda: self._generate(schedule))

    def fewer_steps(self, steps: int) -> Measured:
        """Measures that many steps without DeepCache."""
        return self._measure(f"{steps} steps", lambda: (*self._timed(steps), steps / self.sampler.steps))

    def _generate(self, schedule: StepSchedule) -> tuple[torch.Tensor, float, float]:
        """Images, seconds and cost."""
        pipe = self.sampler.pipe
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
        images = self.sampler.sample(steps)
        return images, perf_counter() - start

    def _measure(self, key: str, generate: Callable[[], tuple[torch.Tensor, float, float]]) -> Measured:
        if key not in self._known:
            reference = self.reference
            images, seconds, cost = generate()
            # Images with NaN are never close to the original.
            fidelity = similarity = 0.0
            if images.isfinite().all():
                fidelity = fmean(min(value, IDENTICAL) for value in psnr(images, reference).tolist())
                similarity = fmean(ssim(images, reference).tolist())
            self._save(key, Measured(cost, fidelity, similarity, seconds))
            self._on_work(cost)
        return self._known[key]

    def _save(self, key: str, measured: Measured) -> None:
        self._known[key] = measured
        entry = {"prompts": self._name, "guidance": self.sampler.guidance, "key": key, "measured": asdict(measured)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


class MeanEvaluations:
    """Means of the evaluations at several guidance scales, of equally many prompts."""

    def __init__(self, each: Sequence[Evaluations]) -> None:
        self.each = tuple(each)

    @property
    def seconds_of_reference(self) -> float:
        """The seconds without DeepCache, at all scales together."""
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
    """The mean over several guidance scales; the sum of the seconds."""
    return Measured(
        cost=fmean(each.cost for each in measured),
        psnr=fmean(each.psnr for each in measured),
        ssim=fmean(each.ssim for each in measured),
        seconds=sum(each.seconds for each in measured),
    )


def _key(schedule: StepSchedule) -> str:
    return " ".join(str(line) for name, line in schedule.to_dict().items() if name != "kind")
