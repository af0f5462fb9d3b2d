"""Measures fidelity against cost over a grid of settings, schedulers and steps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from DeepCache.bench.clock import is_out_of_memory
from DeepCache.bench.contestants import DEEPCACHE, FEWER_STEPS
from DeepCache.bench.front import mark_front
from DeepCache.bench.provenance import describe_device, provenance
from DeepCache.bench.result_file import ABLATION_FORMAT, resumed_result, write_result
from DeepCache.bench.summary import summary
from DeepCache.bench.variants import Variant, check_names, variant_name
from DeepCache.bench.workload import default_size
from DeepCache.config import DeepCacheConfig
from DeepCache.engine.attach import apply_deepcache, remove_deepcache
from DeepCache.engine.fingerprint import other_scheduler
from DeepCache.engine.unet_cache import check_settings
from DeepCache.engine.unets import unets_of
from DeepCache.generation.painter import Painter
from DeepCache.generation.settings import GenerationSettings, check_against_pipeline
from DeepCache.metrics import clip_score, lpips, psnr, ssim, why_not_clip, why_not_lpips
from DeepCache.models.device import resolve_device
from DeepCache.models.loading import load_pipeline, recommended_guidance
from DeepCache.models.schedulers import set_scheduler
from DeepCache.progress import Work, WorkProgress

__all__ = ["OWN_SCHEDULER", "AblationSettings", "grid", "run_ablation"]

OWN_SCHEDULER = "model"
"""In `schedulers`, the scheduler that the model came with."""

# What two identical images count as, so that a mean can be taken.
IDENTICAL = 120.0
_MOST_FEWER_STEPS = 8
# What drawing under an average setting costs, to tell how long it will take.
_USUAL_SHARE = 0.45


def grid(
    intervals: Iterable[int],
    branches: Iterable[int] = (0,),
    skip_modes: Iterable[str] = ("uniform",),
    forecasts: Iterable[str] = ("none", "linear", "quadratic"),
    guidance_reuse: Iterable[bool] = (False,),
) -> tuple[Variant, ...]:
    """All combinations of settings.

    Example:
        >>> [variant.name for variant in grid((3, 5), forecasts=("none", "linear"))]
        ['I=3 B=0', 'I=3 B=0 linear', 'I=5 B=0', 'I=5 B=0 linear']
    """
    combinations = product(intervals, branches, skip_modes, forecasts, guidance_reuse)
    configs = [DeepCacheConfig(*values) for values in combinations]
    return tuple(Variant(variant_name(config), config) for config in configs)


@dataclass(frozen=True)
class AblationSettings:
    """What to draw, and how.

    Args:
        prompts (`tuple` of `str`):
            What to draw.
        variants (`tuple` of `Variant`):
            Settings of DeepCache; see `grid`. A plan is drawn with the scheduler and the steps that it was tuned for.
        model (`str`, defaults to `"shapes"`):
            What `load_pipeline` takes.
        schedulers (`tuple` of `str`, *optional*):
            As `set_scheduler` takes them; the model's own by default.
        steps (`tuple` of `int`, defaults to `(50,)`):
            Numbers of denoising steps.
        seeds (`tuple` of `int`, defaults to `(0,)`):
            Each prompt is drawn once for each: prompt number n, from 0, from the seed plus n.
        guidance (`float`, *optional*):
            The guidance scale; the one recommended for the model by default.
        size (width and height, *optional*):
            In pixels; the pipeline's own by default.
        batch (`int`, defaults to `8`):
            Images in one pipeline call.
        dtype (`str`, defaults to `"auto"`):
            As `load_pipeline` takes it.
        samples (`int`, defaults to `4`):
            How many images of each setting are kept as pictures: the first ones.
        clip (`str`, defaults to `"openai/clip-vit-large-patch14"`):
            The model of the CLIP score, which is left out where the model is not on this machine. LPIPS is left out too
            where its weights are not.

    Raises:
        ValueError: a value is out of its range.
    """

    prompts: tuple[str, ...]
    variants: tuple[Variant, ...]
    model: str = "shapes"
    schedulers: tuple[str, ...] = ()
    steps: tuple[int, ...] = (50,)
    seeds: tuple[int, ...] = (0,)
    guidance: float | None = None
    size: tuple[int, int] | None = None
    batch: int = 8
    dtype: str = "auto"
    samples: int = 4
    clip: str = "openai/clip-vit-large-patch14"

    def __post_init__(self) -> None:
        for name in ("prompts", "variants", "steps", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name one or more, got none")
        for name in ("variants", "schedulers", "steps", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} must differ from each other, got one of them twice")
        check_names(self.variants)
        for seed in self.seeds:
            GenerationSettings(self.prompts, seed=seed, guidance=self.guidance)
        for name, value, least in (
            *(("steps", steps, 2) for steps in self.steps),
            ("batch", self.batch, 1),
            ("samples", self.samples, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}")


def run_ablation(
    settings: AblationSettings,
    output: Path,
    device: str | torch.device | None = None,
    on_progress: Callable[[WorkProgress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Draws all prompts under every setting, and compares with the same images without caching.

    The result file is written after every setting, so that a run that was stopped goes on where it was. Beside it are
    folders of its name: `…-samples` with pictures of the first images, and, while the run goes on, `…-unfinished` with
    the images to compare with.

    Args:
        settings: what to draw, and how.
        output: the result file. What it holds already is not drawn again.
        device: as `load_pipeline` takes it.
        on_progress: called as the work goes on.

    Returns:
        The result, as in the file.

    Raises:
        ValueError: the settings do not fit the model, the file is of another run, or the pipeline draws NaN.
        TypeError: the pipeline has no U-Net that DeepCache can cut.
        MemoryError: the device has not enough memory.
        OSError: the model cannot be loaded or a file not be written.

    Example:
        >>> from pathlib import Path
        >>> settings = AblationSettings(("a red circle",), grid((2, 3), forecasts=("none",)), steps=(6,), samples=0)
        >>> result = run_ablation(settings, Path("ablation.json"), device="cpu")
        >>> [cell["label"] for cell in result["groups"][0]["cells"]]
        ['I=2 B=0', 'I=3 B=0', '3 steps', '2 steps']
    """
    found_device = resolve_device(device)
    work = Work(0.0, on_progress)
    work.begin(f"loading {settings.model}")
    pipe = load_pipeline(settings.model, dtype=settings.dtype, device=found_device)
    pipe.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    left_out = {"lpips": why_not_lpips(), "clip": why_not_clip(settings.clip)}
    left_out = {metric: reason for metric, reason in left_out.items() if reason}
    result = resumed_result(output, _fresh(settings, pipe, left_out))
    own = pipe.scheduler
    groups = []
    for values in result["groups"]:
        pipe.scheduler = own
        if values["scheduler"] != OWN_SCHEDULER:
            set_scheduler(pipe, values["scheduler"])
        group = _Group(settings, pipe, pipe.scheduler, output, result, values, work)
        values |= {"scheduler_class": type(pipe.scheduler).__name__, "labels": group.labels()}
        groups.append(group)
    # What is wrong with any of them is told before the first image.
    for group in groups:
        group.check()
    for variant in settings.variants:
        if not any(group.fits(variant.config) for group in groups):
            raise ValueError(
                f"{variant.name!r} was tuned for another scheduler or number of steps than those that are drawn with; "
                "add that, or force it ('plan=FILE force')"
            )
    work.total = sum(group.expected_work() for group in groups)
    for group in groups:
        group.measure()
    with suppress(OSError):
        # It is not there where nothing was left to draw, and not empty where somebody put something into it.
        _unfinished(output).rmdir()
    work.end()
    return result


def _fresh(settings: AblationSettings, pipe: Any, left_out: dict[str, str]) -> dict[str, Any]:
    """The result before anything is drawn."""
    schedulers = settings.schedulers or (OWN_SCHEDULER,)
    width, height = settings.size or default_size(pipe)
    return {
        "format": ABLATION_FORMAT,
        **provenance(settings.seeds[0]),
        "device": describe_device(pipe.device),
        "settings": {
            "model": settings.model,
            "pipeline": type(pipe).__name__,
            "unet": type(next(iter(unets_of(pipe).values()))).__name__,
            "guidance": _guidance(settings, pipe),
            "width": width,
            "height": height,
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "batch": settings.batch,
            "prompts": list(settings.prompts),
            "seeds": list(settings.seeds),
            "samples": settings.samples,
            "schedulers": list(schedulers),
            "steps": list(settings.steps),
            "labels": [variant.name for variant in settings.variants],
            "left_out": left_out,
        },
        "groups": [
            {"scheduler": scheduler, "steps": steps, "labels": [], "reference": None, "cells": []}
            for scheduler, steps in product(schedulers, settings.steps)
        ],
    }


def _guidance(settings: AblationSettings, pipe: Any) -> float | None:
    return settings.guidance if settings.guidance is not None else recommended_guidance(settings.model, pipe)


@dataclass
class _Group:
    """All that is drawn with one scheduler and number of steps.

    Args:
        settings: those of the ablation.
        pipe: the pipeline.
        scheduler: the scheduler.
        output: the result file.
        result: what is in it.
        values: the part of it that is this group's.
        work: how far all is.
    """

    settings: AblationSettings
    pipe: Any
    scheduler: Any
    output: Path
    result: dict[str, Any]
    values: dict[str, Any]
    work: Work

    @property
    def name(self) -> str:
        return f"{self.values['scheduler']}, {self.values['steps']} steps"

    def check(self) -> None:
        """Refuses what cannot be drawn."""
        settings, steps = self.settings, self.values["steps"]
        self.pipe.scheduler = self.scheduler
        generation = GenerationSettings(
            prompts=settings.prompts, steps=steps, guidance=settings.guidance, size=settings.size
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

        class Reached(Exception):
            pass

        def stop(*_: Any) -> None:
            raise Reached

        apply_deepcache(self.pipe, config)
        handles = [unet.register_forward_pre_hook(stop) for unet in unets_of(self.pipe).values()]
        try:
            self._painter(self.settings.seeds[0]).draw_batch(0)
        except Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
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
        """Those that are for this scheduler and number of steps."""
        return [variant for variant in self.settings.variants if self.fits(variant.config)]

    def labels(self) -> list[str]:
        """The short names of those."""
        return [variant.name for variant in self._variants()]

    def fits(self, config: DeepCacheConfig) -> bool:
        """Whether the settings are for this scheduler and number of steps: a plan is for one."""
        plan = config.plan
        if plan is None or config.force_plan:
            return True
        # Some schedulers take more steps than they are asked for, and the schedule has one for each.
        steps = plan.tuned.get("steps", len(plan.schedule.each))
        return not other_scheduler(plan, self.scheduler) and steps == self.values["steps"]

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
        if drawn.isnan().any():
            raise ValueError(
                f"{self.name}, {label}: the pipeline drew what is no number (NaN), as autoencoders do that overflow in "
                "float16; try --dtype bfloat16 or float32"
            )
        return drawn, seconds

    def _painter(self, seed: int) -> Painter:
        settings = self.settings
        guidance = _guidance(settings, self.pipe)
        return Painter(self.pipe, settings.prompts, self.values["steps"], guidance, seed, settings.batch, settings.size)

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
            "samples": self._save_samples("original", images),
        }
        self.work.add(steps)
        write_result(self.output, self.result)
        return images

    @property
    def _reference_file(self) -> Path:
        return _unfinished(self.output) / f"{_file_name(self.name)}.safetensors"

    def _add(self, cell: dict[str, Any], images: Tensor, reference: Tensor, share: float) -> None:
        """Measures the images of a cell and writes it down."""
        left_out = self.result["settings"]["left_out"]
        nearness = [min(value, IDENTICAL) for value in psnr(images, reference).tolist()]
        cell |= {
            "psnr": summary(nearness),
            "ssim": summary(ssim(images, reference).tolist()),
            "lpips": None if "lpips" in left_out else summary(lpips(images, reference).tolist()),
            "clip": self._clip(images),
            "samples": self._save_samples(cell["label"], images),
        }
        self.values["cells"].append(cell)
        mark_front(self.values["cells"])
        self.work.add(share * self.values["steps"])
        write_result(self.output, self.result)

    def _clip(self, images: Tensor) -> dict[str, Any] | None:
        if "clip" in self.result["settings"]["left_out"]:
            return None
        prompts = self.settings.prompts * len(self.settings.seeds)
        return summary(clip_score(images, prompts, self.settings.clip).tolist())

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


def _unfinished(output: Path) -> Path:
    """Where the images to compare with are while a run goes on."""
    return output.with_name(f"{_stem(output)}-unfinished")


def _stem(output: Path) -> str:
    """The name without `.json`: what else has a dot in it (`sdxl-1.0`) is no ending."""
    return output.name.removesuffix(".json")


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text.lower()).strip("-")
