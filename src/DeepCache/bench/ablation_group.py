"""A group of an ablation: everything generated at one guidance scale, with one scheduler and number of steps."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from DeepCache.bench.ablation_cells import guidance_in_words, mark_front, mark_over_reuse
from DeepCache.bench.benchmark_case import DEEPCACHE, FEWER_STEPS
from DeepCache.bench.clock import is_out_of_memory
from DeepCache.bench.result_file import write_result
from DeepCache.bench.summary import summary
from DeepCache.bench.variants import Variant
from DeepCache.config import DeepCacheConfig
from DeepCache.engine.attach import apply_deepcache, remove_deepcache
from DeepCache.engine.checks import check_settings
from DeepCache.engine.fingerprint import other_guidance, other_scheduler
from DeepCache.engine.first_call import first_call
from DeepCache.engine.unets import unets_of
from DeepCache.generation.batch_sampler import BatchSampler
from DeepCache.generation.finite import check_finite
from DeepCache.generation.settings import GenerationSettings, check_against_pipeline
from DeepCache.metrics import clip_score, lpips, psnr, ssim
from DeepCache.progress import Work

if TYPE_CHECKING:
    from DeepCache.bench.ablation import AblationSettings
    from DeepCache.judge import Judge

__all__ = ["AblationGroup", "fewer_steps", "unfinished_folder"]

# The PSNR of identical images, so that a mean exists.
_IDENTICAL = 120.0
_MOST_FEWER_STEPS = 8
# The cost of an average setting, to estimate the work.
_USUAL_SHARE = 0.45


@dataclass
class AblationGroup:
    """Generates and measures a group; `values` is its part of the `result` in the file."""

    settings: AblationSettings
    pipe: Any
    scheduler: Any
    output: Path
    result: dict[str, Any]
    values: dict[str, Any]
    work: Work
    judge: Judge | None

    def __post_init__(self) -> None:
        self.steps: int = self.values["steps"]
        self.guidance: float | None = self.values["guidance"]
        self.name = f"{self.values['scheduler']}, {self.steps} steps" + guidance_in_words(self.guidance)
        self.variants = [variant for variant in self.settings.variants if self.fits(variant.config)]
        self.labels = [variant.name for variant in self.variants]
        self._reference_file = unfinished_folder(self.output) / f"{_file_name(self.name)}.safetensors"
        # The prompt of each image.
        self._prompts = self.settings.prompts * len(self.settings.seeds)

    def fits(self, config: DeepCacheConfig) -> bool:
        """Whether the settings are for this scheduler, number of steps and guidance scale, which a plan may not be."""
        plan = config.plan
        if plan is None or config.force_plan:
            return True
        # Some schedulers have more steps than requested, and the schedule has one for each.
        steps = plan.tuned.get("steps", len(plan.schedule.each))
        others = other_scheduler(plan, self.scheduler) or other_guidance(plan, self.guidance)
        return not others and steps == self.steps

    def check(self) -> None:
        """Raises `ValueError` for settings that the pipeline cannot run with."""
        settings = self.settings
        self.pipe.scheduler = self.scheduler
        generation = GenerationSettings(settings.prompts, steps=self.steps, guidance=self.guidance, size=settings.size)
        check_against_pipeline(generation, self.pipe)
        done = self._done()
        for variant in self.variants:
            for unet in unets_of(self.pipe).values():
                check_settings(variant.config, unet, self.pipe)
            before = done.get(variant.name)
            # As JSON has it, so that tuples equal lists.
            if before is not None and before["config"] != json.loads(variant.config.to_json()):
                raise ValueError(
                    f"{str(self.output)!r} is of another run: {variant.name!r} had other settings there; delete it, or "
                    "give another --output"
                )
        halved = [variant for variant in self.variants if variant.config.any_guidance_reuse]
        if halved:
            self._start(halved[0].config)

    def _start(self, config: DeepCacheConfig) -> None:
        """Runs until the first U-Net call, which raises `ValueError` if guidance cannot be reused."""
        apply_deepcache(self.pipe, config)
        try:
            unets = list(unets_of(self.pipe).values())
            first_call(unets, lambda: self._sampler(self.settings.seeds[0]).sample_batch(0), prepend=False)
        finally:
            remove_deepcache(self.pipe)

    def expected_work(self) -> float:
        """In steps without caching."""
        left = sum(label not in self._done() for label in self.labels)
        return float((1 + _USUAL_SHARE * (left + min(left, _MOST_FEWER_STEPS))) * self.steps)

    def measure(self) -> None:
        """Generates and measures what is missing."""
        self.pipe.scheduler = self.scheduler
        variants = [variant for variant in self.variants if variant.name not in self._done()]
        if variants or not self._fewer_steps().keys() <= self._done().keys():
            reference = self._reference()
            for variant in variants:
                self._measure_variant(variant, reference)
            for label, steps in self._fewer_steps().items():
                if label not in self._done():
                    self._measure_fewer_steps(label, steps, reference)
        self._reference_file.unlink(missing_ok=True)

    def _measure_variant(self, variant: Variant, reference: Tensor) -> None:
        engine = apply_deepcache(self.pipe, variant.config)
        try:
            images, seconds = self._generate(variant.name, self.steps)
        finally:
            remove_deepcache(self.pipe)
        stats = engine.stats
        if stats.mac_share is None:
            raise ValueError(f"the cost of this model's steps cannot be counted: {stats.uncounted}")
        head = {"method": DEEPCACHE, "label": variant.name, "config": variant.config.to_dict(), "steps": self.steps}
        run = {"pattern": stats.pattern, "mac_share": stats.mac_share, "seconds": round(seconds, 3)}
        self._add(head | run, images, reference)

    def _measure_fewer_steps(self, label: str, steps: int, reference: Tensor) -> None:
        images, seconds = self._generate(label, steps)
        head = {"method": FEWER_STEPS, "label": label, "config": None, "steps": steps}
        # With some schedulers there are more calls than steps.
        calls, all_calls = len(self.pipe.scheduler.timesteps), len(self.values["cells"][0]["pattern"])
        run = {"pattern": "F" * calls, "mac_share": calls / all_calls, "seconds": round(seconds, 3)}
        self._add(head | run, images, reference)

    def _done(self) -> dict[str, Any]:
        return {cell["label"]: cell for cell in self.values["cells"]}

    def _fewer_steps(self) -> dict[str, int]:
        shares = [cell["mac_share"] for cell in self.values["cells"] if cell["method"] == DEEPCACHE]
        return {f"{count} steps": count for count in fewer_steps(shares, self.steps)}

    def _generate(self, label: str, steps: int) -> tuple[Tensor, float]:
        """All images, and the seconds of the run."""
        self.work.begin(f"{self.name}: {label}")
        begin = perf_counter()
        images = []
        for seed in self.settings.seeds:
            try:
                images.append(self._sampler(seed).sample(steps))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                raise MemoryError("the device has too little memory; try a smaller batch or size") from error
        found, seconds = torch.cat(images), perf_counter() - begin
        check_finite(found, f"{self.name}, {label}: the model in {self.result['settings']['dtype']}")
        return found, seconds

    def _sampler(self, seed: int) -> BatchSampler:
        settings = self.settings
        return BatchSampler(self.pipe, settings.prompts, self.steps, self.guidance, seed, settings.batch, settings.size)

    def _reference(self) -> Tensor:
        """The images without caching, kept in a file until the group is done."""
        if self.values["reference"] is not None and self._reference_file.is_file():
            return load_file(self._reference_file)["images"]
        images, seconds = self._generate("without caching", self.steps)
        self._reference_file.parent.mkdir(parents=True, exist_ok=True)
        partial = self._reference_file.with_suffix(".partial")
        save_file({"images": images}, partial)
        partial.replace(self._reference_file)
        self.values["reference"] = {
            "seconds": round(seconds, 3),
            "clip": self._clip(images),
            "right": self._right(images),
            "samples": self._save_samples("original", images),
        }
        self.work.add(self.steps)
        write_result(self.output, self.result)
        return images

    def _add(self, cell: dict[str, Any], images: Tensor, reference: Tensor) -> None:
        """Adds the figures of the images to a cell, and writes the result."""
        left_out = self.result["settings"]["left_out"]
        cell |= {
            "psnr": summary([min(value, _IDENTICAL) for value in psnr(images, reference).tolist()]),
            "ssim": summary(ssim(images, reference).tolist()),
            "lpips": None if "lpips" in left_out else summary(lpips(images, reference).tolist()),
            "clip": self._clip(images),
            "right": self._right(images),
            "samples": self._save_samples(cell["label"], images),
        }
        self.values["cells"].append(cell)
        mark_front(self.values["cells"])
        mark_over_reuse(self.values["cells"])
        self.work.add(cell["mac_share"] * self.steps)
        write_result(self.output, self.result)

    def _clip(self, images: Tensor) -> dict[str, Any] | None:
        if "clip" in self.result["settings"]["left_out"]:
            return None
        return summary(clip_score(images, self._prompts, self.settings.clip).tolist())

    def _right(self, images: Tensor) -> dict[str, Any] | None:
        """The share of the objects of each image that are right."""
        if self.judge is None:
            return None
        return summary([verdict.share for verdict in self.judge.verdicts(images, self._prompts)])

    def _save_samples(self, label: str, images: Tensor) -> str | None:
        """Saves the first images side by side as a PNG, and returns its path from the folder of the result file."""
        if self.settings.samples == 0:
            return None
        strip = torch.cat(list(images[: self.settings.samples]), dim=-1)
        pixels = (strip.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        folder = Path(f"{_stem(self.output)}-samples") / _file_name(self.name)
        path = self.output.parent / folder / f"{_file_name(label)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return (folder / path.name).as_posix()


def fewer_steps(shares: Iterable[float], steps: int) -> list[int]:
    """Numbers of steps with these costs, from the highest; at most eight, spread over all of them."""
    counts = sorted({max(1, round(steps * share)) for share in shares} - {steps}, reverse=True)
    if len(counts) > _MOST_FEWER_STEPS:
        last = _MOST_FEWER_STEPS - 1
        counts = [counts[round(place * (len(counts) - 1) / last)] for place in range(last + 1)]
    return counts


def unfinished_folder(output: Path) -> Path:
    """The folder of the images to compare with during a run."""
    return output.with_name(f"{_stem(output)}-unfinished")


def _stem(output: Path) -> str:
    """The name without `.json` or `.json.gz`; another dot (`sdxl-1.0`) does not start a suffix."""
    return output.name.removesuffix(".gz").removesuffix(".json")


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text.lower()).strip("-")
