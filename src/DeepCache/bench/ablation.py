"""Measures fidelity against cost over a grid of settings, guidance scales, schedulers and steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import InitVar, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from DeepCache.bench.ablation_group import AblationGroup, unfinished_folder
from DeepCache.bench.checks import check_lists, check_minimum
from DeepCache.bench.provenance import describe_device, provenance
from DeepCache.bench.result_file import ABLATION_FORMAT, resumed_result
from DeepCache.bench.variants import Variant, check_names, variant_name
from DeepCache.bench.workload import default_size
from DeepCache.config import DeepCacheConfig
from DeepCache.engine.unets import unets_of
from DeepCache.generation.settings import GenerationSettings
from DeepCache.judge import JUDGED, Judge, load_judge
from DeepCache.judge.recogniser import SIDE
from DeepCache.metrics import why_not_clip, why_not_lpips
from DeepCache.models.device import resolve_device
from DeepCache.models.loading import load_pipeline, recommended_guidance
from DeepCache.models.schedulers import set_scheduler
from DeepCache.progress import Work, WorkProgress
from DeepCache.schedule import FORECASTS

__all__ = ["OWN_SCHEDULER", "AblationSettings", "grid", "run_ablation"]

OWN_SCHEDULER = "model"
"""In `schedulers`, the scheduler of the model."""


def grid(
    intervals: Iterable[int],
    branches: Iterable[int] = (0,),
    skip_modes: Iterable[str] = ("uniform",),
    forecasts: Iterable[str] = FORECASTS,
    guidance_reuse: Iterable[bool] = (False,),
    between: Iterable[str] = ("shallow",),
) -> tuple[Variant, ...]:
    """All valid and distinct combinations of settings.

    Omitted are those that `DeepCacheConfig` refuses (forecast `"response"` with shallow steps, guidance reuse with
    skipped ones), and all branches but the first for skipped steps, which use none.

    Example:
        >>> [variant.name for variant in grid((3, 5), forecasts=("none", "linear"))]
        ['I=3 B=0', 'I=3 B=0 linear', 'I=5 B=0', 'I=5 B=0 linear']
        >>> [variant.name for variant in grid((3,), (0, 1), forecasts=("response",), between=("shallow", "skipped"))]
        ['I=3 B=0 response skipped']
    """
    branches = tuple(branches)
    configs = [
        DeepCacheConfig(interval, branch, mode, forecast, reuse, between=kind)  # type: ignore[arg-type]
        for interval, branch, mode, forecast, reuse, kind in product(
            intervals, branches, skip_modes, forecasts, guidance_reuse, between
        )
        if not (kind == "shallow" and forecast == "response")
        and not (kind == "skipped" and (reuse or branch != branches[0]))
    ]
    return tuple(Variant(variant_name(config), config) for config in configs)


@dataclass(frozen=True)
class AblationSettings:
    """Settings of an ablation.

    Args:
        prompts (`tuple` of `str`):
            The prompts.
        variants (`tuple` of `Variant`):
            Settings of DeepCache; see `grid`. A plan runs with the scheduler, steps and guidance that it was tuned for.
        model (`str`, defaults to `"shapes"`):
            As for `load_pipeline`.
        schedulers (`tuple` of `str`, *optional*):
            As for `set_scheduler`; by default that of the model.
        steps (`tuple` of `int`, defaults to `(50,)`):
            Numbers of denoising steps.
        seeds (`tuple` of `int`, defaults to `(0,)`):
            Each prompt is generated once for each: prompt number n, from 0, with the seed plus n.
        guidances (`tuple` of `float`, *optional*):
            Guidance scales, each with its own images without caching; by default the one recommended for the model.
        guidance (`float`, *optional*):
            One guidance scale, short for `guidances=(guidance,)`.
        size (width and height, *optional*):
            In pixels; by default the default size of the pipeline.
        batch (`int`, defaults to `8`):
            Images in one pipeline call.
        dtype (`str`, defaults to `"auto"`):
            As for `load_pipeline`.
        samples (`int`, defaults to `4`):
            How many images of each setting are saved: the first ones.
        clip (`str`, defaults to `"openai/clip-vit-large-patch14"`):
            The model of the CLIP score, which is not measured if the model is not on this machine; nor is LPIPS without
            its weights.
        judge (`bool`, defaults to `True`):
            Whether to count the objects with the right colour, shape and place, if there is a judge for the model,
            prompts and size: for the bundled model at 64 pixels with its captions.

    Raises:
        ValueError: a value is out of range.
    """

    prompts: tuple[str, ...]
    variants: tuple[Variant, ...]
    model: str = "shapes"
    schedulers: tuple[str, ...] = ()
    steps: tuple[int, ...] = (50,)
    seeds: tuple[int, ...] = (0,)
    guidances: tuple[float, ...] = ()
    guidance: InitVar[float | None] = None
    size: tuple[int, int] | None = None
    batch: int = 8
    dtype: str = "auto"
    samples: int = 4
    clip: str = "openai/clip-vit-large-patch14"
    judge: bool = True

    def __post_init__(self, guidance: float | None) -> None:
        if guidance is not None:
            if self.guidances:
                raise ValueError(f"guidance and guidances cannot be combined, got {guidance} and {self.guidances}")
            object.__setattr__(self, "guidances", (guidance,))
        lists = ("variants", "steps", "seeds")
        check_lists(self, ("prompts", *lists), (*lists, "schedulers", "guidances"))
        check_names(self.variants)
        for seed in self.seeds:
            GenerationSettings(self.prompts, seed=seed)
        for scale in self.guidances:
            GenerationSettings(self.prompts, guidance=scale)
        check_minimum("steps", self.steps, 2)
        check_minimum("batch", [self.batch], 1)
        check_minimum("samples", [self.samples], 0)


def run_ablation(
    settings: AblationSettings,
    output: Path,
    device: str | torch.device | None = None,
    on_progress: Callable[[WorkProgress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Generates all prompts with every setting, and compares with the same images without caching.

    The result file is written after every setting, so a stopped run resumes. Two folders beside it have its name:
    `…-samples` with the first images, and during the run `…-unfinished` with the images to compare with.

    Args:
        settings: the settings.
        output: the result file. What it has is not generated again.
        device: as for `load_pipeline`.
        on_progress: called during the work.

    Returns:
        The result, as in the file.

    Raises:
        ValueError: the settings do not fit the model, the file is of another run, or the pipeline produces NaN.
        TypeError: DeepCache does not support the U-Net of the pipeline.
        MemoryError: the device has too little memory.
        OSError: the model cannot be loaded or a file cannot be written.

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
    pipe = load_pipeline(settings.model, dtype=settings.dtype, device=found_device, progress_bar=False)
    judge, why_not_judge = _judge(settings, pipe)
    reasons = {"lpips": why_not_lpips(), "clip": why_not_clip(settings.clip), "judge": why_not_judge}
    left_out = {metric: reason for metric, reason in reasons.items() if reason}
    result = resumed_result(output, _empty_result(settings, pipe, left_out))
    own = pipe.scheduler
    groups = []
    for values in result["groups"]:
        pipe.scheduler = own
        if values["scheduler"] != OWN_SCHEDULER:
            set_scheduler(pipe, values["scheduler"])
        group = AblationGroup(settings, pipe, pipe.scheduler, output, result, values, work, judge)
        values |= {"scheduler_class": type(pipe.scheduler).__name__, "labels": group.labels}
        groups.append(group)
    # All groups are checked before the first image.
    for group in groups:
        group.check()
    for variant in settings.variants:
        if not any(group.fits(variant.config) for group in groups):
            raise ValueError(
                f"{variant.name!r} was tuned for another scheduler, number of steps or guidance scale than those here; "
                "add that, or force it ('plan=FILE force')"
            )
    work.total = sum(group.expected_work() for group in groups)
    for group in groups:
        group.measure()
    with suppress(OSError):
        # The folder is missing if nothing was generated, and not empty if it has files of others.
        unfinished_folder(output).rmdir()
    work.end()
    return result


def _empty_result(settings: AblationSettings, pipe: Any, left_out: dict[str, str]) -> dict[str, Any]:
    schedulers = settings.schedulers or (OWN_SCHEDULER,)
    guidances = settings.guidances or (recommended_guidance(settings.model, pipe),)
    width, height = settings.size or default_size(pipe)
    return {
        "format": ABLATION_FORMAT,
        **provenance(settings.seeds[0]),
        "device": describe_device(pipe.device),
        "settings": {
            "model": settings.model,
            "pipeline": type(pipe).__name__,
            "unet": type(next(iter(unets_of(pipe).values()))).__name__,
            "width": width,
            "height": height,
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "batch": settings.batch,
            "prompts": list(settings.prompts),
            "seeds": list(settings.seeds),
            "samples": settings.samples,
            "guidances": list(guidances),
            "schedulers": list(schedulers),
            "steps": list(settings.steps),
            "labels": [variant.name for variant in settings.variants],
            "left_out": left_out,
        },
        "groups": [
            {"guidance": guidance, "scheduler": scheduler, "steps": steps, "labels": [], "reference": None, "cells": []}
            for guidance, scheduler, steps in product(guidances, schedulers, settings.steps)
        ],
    }


def _judge(settings: AblationSettings, pipe: Any) -> tuple[Judge | None, str]:
    """The judge of the images, or the reason why there is none."""
    if not settings.judge:
        return None, "it was turned off"
    if settings.model not in JUDGED:
        return None, f"only {', '.join(JUDGED)} has one"
    if (settings.size or default_size(pipe)) != (SIDE, SIDE):
        return None, f"it reads images of {SIDE}x{SIDE} pixels"
    judge = load_judge(settings.model)
    try:
        judge.check(settings.prompts)
    except ValueError as error:
        return None, str(error)
    return judge, ""
