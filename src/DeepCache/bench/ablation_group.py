"""One group of an ablation: what is generated at one guidance scale, with one scheduler and number of steps."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from DeepCache.bench.clock import is_out_of_memory
from DeepCache.bench.contestants import DEEPCACHE, FEWER_STEPS
from DeepCache.bench.front import mark_front
from DeepCache.bench.guidance_scale import guidance_in_words
from DeepCache.bench.over_reuse import mark_over_reuse
from DeepCache.bench.result_file import write_result
from DeepCache.bench.summary import summary
from DeepCache.bench.variants import Variant
from DeepCache.config import DeepCacheConfig
from DeepCache.engine.attach import apply_deepcache, remove_deepcache
from DeepCache.engine.checks import check_settings
from DeepCache.engine.fingerprint import other_guidance, other_scheduler
from DeepCache.engine.first_call import first_call
from DeepCache.engine.unets import unets_of
from DeepCache.generation.finite import check_finite
from DeepCache.generation.painter import Painter
from DeepCache.generation.settings import GenerationSettings, check_against_pipeline
from DeepCache.metrics import clip_score, lpips, psnr, ssim
from DeepCache.progress import Work

if TYPE_CHECKING:
    from DeepCache.bench.ablation import AblationSettings
    from DeepCache.judge import Judge

__all__ = ["AblationGroup", "unfinished_folder"]

# What two identical images count as, so that a mean can be taken.
_IDENTICAL = 120.0
_MOST_FEWER_STEPS = 8
# What generating under an average setting costs, to tell how long it will take.
_USUAL_SHARE = 0.45


@dataclass
class AblationGroup:
    """All that is generated at one guidance scale, with one scheduler and number of steps.

    Args:
        settings: those of the ablation.
        pipe: the pipeline.
        scheduler: the scheduler.
        output: the result file.
        result: what is in it.
        values: the part of it that is this group's.
        work: how far all is.
        judge: the judge of the images; None where they have none.
    """

    settings: AblationSettings
    pipe: Any
    scheduler: Any
    output: Path
    result: dict[str, Any]
    values: dict[str, Any]
    work: Work
    judge: Judge | None = None

    @property
    def name(self) -> str:
        """Scheduler, steps and guidance, as in progress messages and file names."""
        return f"{self.values['scheduler']}, {self.values['steps']} steps" + guidance_in_words(self.guidance)

    @property
    def guidance(self) -> float | None:
        """The guidance scale; None where the pipeline takes none."""
        guidance: float | None = self.values["guidance"]
        return guidance

    def check(self) -> None:
        """Refuses what cannot be drawn."""
        settings, steps = self.settings, self.values["steps"]
        self.pipe.scheduler = self.scheduler
        generation = GenerationSettings(
            prompts=settings.prompts, steps=steps, guidance=self.guidance, size=settings.size
        )
        check_against_pipeline(generation, self.pipe)
        for unet in unets_of(self.pipe).values():
            for variant in self._variants():
                check_settings(variant.config, unet, self.pipe)
        for variant in self._variants():
            drawn = self._done().get(variant.name)
            # As JSON has it, so that tuples and lists are alike.
            if drawn is not None and drawn["config"] != json.loads(variant.config.to_json()):
                raise ValueError(
                    f"{str(self.output)!r} is of another run: {variant.name!r} stood for other settings there; delete "
                    "it, or give another --output"
                )
        halved = [variant for variant in self._variants() if variant.config.any_guidance_reuse]
        if halved:
            self._begin(halved[0].config)

    def _begin(self, config: DeepCacheConfig) -> None:
        """Begins to draw and goes no further than to the U-Net: only there it shows whether guidance can be reused."""
        apply_deepcache(self.pipe, config)
        try:
            unets = list(unets_of(self.pipe).values())
            first_call(unets, lambda: self._painter(self.settings.seeds[0]).draw_batch(0), prepend=False)
        finally:
            remove_deepcache(self.pipe)

    def expected_work(self) -> float:
        """In drawings without caching of one step."""
        left = [variant for variant in self._variants() if variant.name not in self._done()]
        drawings = 1 + _USUAL_SHARE * (len(left) + min(len(left), _MOST_FEWER_STEPS))
        return float(drawings * self.values["steps"])

    def measure(self) -> None:
        """Draws and measures what is missing."""
        self.pipe.scheduler = self.scheduler
        steps = self.values["steps"]
        variants = [variant for variant in self._variants() if variant.name not in self._done()]
        if not variants and self._fewer_steps().keys() <= self._done().keys():
            # The run may have been stopped right before that.
            self._reference_file.unlink(missing_ok=True)
            return
        reference = self._reference()
        for variant in variants:
            engine = apply_deepcache(self.pipe, variant.config)
            try:
                images, seconds = self._draw(variant.name, steps)
            finally:
                remove_deepcache(self.pipe)
            stats = engine.stats
            if stats.mac_share is None:
                raise ValueError(f"the cost of this model's steps cannot be counted: {stats.uncounted}")
            head = {"method": DEEPCACHE, "label": variant.name, "config": variant.config.to_dict(), "steps": steps}
            how = {"pattern": stats.pattern, "mac_share": stats.mac_share, "seconds": round(seconds, 3)}
            self._add(head | how, images, reference, stats.mac_share)
        for label, fewer in self._fewer_steps().items():
            if label not in self._done():
                images, seconds = self._draw(label, fewer)
                head = {"method": FEWER_STEPS, "label": label, "config": None, "steps": fewer}
                # Which are more than the steps asked for with some schedulers.
                calls, all_calls = len(self.pipe.scheduler.timesteps), len(self.values["cells"][0]["pattern"])
                how = {"pattern": "F" * calls, "mac_share": calls / all_calls, "seconds": round(seconds, 3)}
                self._add(head | how, images, reference, calls / all_calls)
        self._reference_file.unlink(missing_ok=True)

    def _variants(self) -> list[Variant]:
        """Those that are for this scheduler, number of steps and guidance scale."""
        return [variant for variant in self.settings.variants if self.fits(variant.config)]

    def labels(self) -> list[str]:
        """The short names of those."""
        return [variant.name for variant in self._variants()]

    def fits(self, config: DeepCacheConfig) -> bool:
        """Whether the settings are for this scheduler, number of steps and guidance scale: a plan is for some."""
        plan = config.plan
        if plan is None or config.force_plan:
            return True
        # Some schedulers take more steps than they are asked for, and the schedule has one for each.
        steps = plan.tuned.get("steps", len(plan.schedule.each))
        others = other_scheduler(plan, self.scheduler) or other_guidance(plan, self.guidance)
        return not others and steps == self.values["steps"]

    def _done(self) -> dict[str, Any]:
        return {cell["label"]: cell for cell in self.values["cells"]}

    def _fewer_steps(self) -> dict[str, int]:
        """Numbers of steps that cost as much as the settings, spread over all of them where they are many."""
        shares = [cell["mac_share"] for cell in self.values["cells"] if cell["method"] == DEEPCACHE]
        steps = self.values["steps"]
        counts = sorted({max(1, round(steps * share)) for share in shares} - {steps}, reverse=True)
        if len(counts) > _MOST_FEWER_STEPS:
            last = _MOST_FEWER_STEPS - 1
            counts = [counts[round(place * (len(counts) - 1) / last)] for place in range(last + 1)]
        return {f"{count} steps": count for count in counts}

    def _draw(self, label: str, steps: int) -> tuple[Tensor, float]:
        """All images, and the seconds that they took."""
        settings = self.settings
        self.work.begin(f"{self.name}: {label}")
        begin = perf_counter()
        images = []
        for seed in settings.seeds:
            try:
                images.append(self._painter(seed).draw(steps))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                raise MemoryError("the device has not enough memory for this; try a smaller batch or size") from error
        drawn, seconds = torch.cat(images), perf_counter() - begin
        check_finite(drawn, f"{self.name}, {label}: the model in {self.result['settings']['dtype']}")
        return drawn, seconds

    def _painter(self, seed: int) -> Painter:
        settings = self.settings
        return Painter(
            self.pipe, settings.prompts, self.values["steps"], self.guidance, seed, settings.batch, settings.size
        )

    def _reference(self) -> Tensor:
        """The images without caching, kept in a file until the group is done."""
        steps = self.values["steps"]
        if self.values["reference"] is not None and self._reference_file.is_file():
            return load_file(self._reference_file)["images"]
        images, seconds = self._draw("without caching", steps)
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
        self.work.add(steps)
        write_result(self.output, self.result)
        return images

    @property
    def _reference_file(self) -> Path:
        return unfinished_folder(self.output) / f"{_file_name(self.name)}.safetensors"

    def _add(self, cell: dict[str, Any], images: Tensor, reference: Tensor, share: float) -> None:
        """Measures the images of a cell and writes it down."""
        left_out = self.result["settings"]["left_out"]
        nearness = [min(value, _IDENTICAL) for value in psnr(images, reference).tolist()]
        cell |= {
            "psnr": summary(nearness),
            "ssim": summary(ssim(images, reference).tolist()),
            "lpips": None if "lpips" in left_out else summary(lpips(images, reference).tolist()),
            "clip": self._clip(images),
            "right": self._right(images),
            "samples": self._save_samples(cell["label"], images),
        }
        self.values["cells"].append(cell)
        mark_front(self.values["cells"])
        mark_over_reuse(self.values["cells"])
        self.work.add(share * self.values["steps"])
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

    @property
    def _prompts(self) -> tuple[str, ...]:
        """The prompt of each image."""
        return self.settings.prompts * len(self.settings.seeds)

    def _save_samples(self, label: str, images: Tensor) -> str | None:
        """The first images side by side as a PNG; its path from the folder of the result file."""
        if self.settings.samples == 0:
            return None
        strip = torch.cat(list(images[: self.settings.samples]), dim=-1)
        pixels = (strip.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        folder = Path(f"{_stem(self.output)}-samples") / _file_name(self.name)
        path = self.output.parent / folder / f"{_file_name(label)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return (folder / path.name).as_posix()


def unfinished_folder(output: Path) -> Path:
    """Where the images to compare with are while a run goes on."""
    return output.with_name(f"{_stem(output)}-unfinished")


def _stem(output: Path) -> str:
    """The name without `.json`: what else has a dot in it (`sdxl-1.0`) is no ending."""
    return output.name.removesuffix(".json")


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text.lower()).strip("-")
