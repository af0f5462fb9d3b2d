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
"""In `schedulers`, the scheduler that the model came with."""


def grid(
    intervals: Iterable[int],
    branches: Iterable[int] = (0,),
    skip_modes: Iterable[str] = ("uniform",),
    forecasts: Iterable[str] = FORECASTS,
    guidance_reuse: Iterable[bool] = (False,),
    between: Iterable[str] = ("shallow",),
) -> tuple[Variant, ...]:
    """All combinations of settings that make sense.

    Left out are those that `DeepCacheConfig` refuses, which are forecast `"response"` with shallow steps and guidance
    reuse with skipped ones, and of skipped steps, which use no branch, all branches but the first.

    Example:
        >>> [variant.name for variant in grid((3, 5), forecasts=("none", "linear"))]
        ['I=3 B=0', 'I=3 B=0 linear', 'I=5 B=0', 'I=5 B=0 linear']
        >>> [variant.name for variant in grid((3,), (0, 1), forecasts=("response",), between=("shallow", "skipped"))]
        ['I=3 B=0 response skipped']
    """
    branches = tuple(branches)
    named: dict[str, Iterable[Any]] = {
        "cache_interval": intervals,
        "cache_branch_id": branches,
        "skip_mode": skip_modes,
        "forecast": forecasts,
        "guidance_reuse": guidance_reuse,
        "between": between,
    }
    combinations = (dict(zip(named, values, strict=True)) for values in product(*named.values()))
    configs = [
        DeepCacheConfig(**each)
        for each in combinations
        if not (each["between"] == "shallow" and each["forecast"] == "response")
        and not (each["between"] == "skipped" and (each["guidance_reuse"] or each["cache_branch_id"] != branches[0]))
    ]
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
        guidances (`tuple` of `float`, *optional*):
            Guidance scales, each with images without caching of its own to compare with; the one recommended for the
            model by default.
        guidance (`float`, *optional*):
            One guidance scale, short for `guidances=(guidance,)`.
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
        judge (`bool`, defaults to `True`):
            Whether to count the objects that are generated with the right colour, shape and place, where the model,
            its prompts and its size have a judge: the bundled model at 64 pixels with its captions.

    Raises:
        ValueError: a value is out of its range.
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
        for name in ("prompts", "variants", "steps", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name one or more, got none")
        for name in ("variants", "schedulers", "steps", "seeds", "guidances"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} must differ from each other, got one of them twice")
        check_names(self.variants)
        for seed in self.seeds:
            GenerationSettings(self.prompts, seed=seed)
        for scale in self.guidances:
            GenerationSettings(self.prompts, guidance=scale)
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
    judge, why_not_judge = _judge(settings, pipe)
    left_out = {"lpips": why_not_lpips(), "clip": why_not_clip(settings.clip), "judge": why_not_judge}
    left_out = {metric: reason for metric, reason in left_out.items() if reason}
    result = resumed_result(output, _fresh(settings, pipe, left_out))
    own = pipe.scheduler
    groups = []
    for values in result["groups"]:
        pipe.scheduler = own
        if values["scheduler"] != OWN_SCHEDULER:
            set_scheduler(pipe, values["scheduler"])
        group = AblationGroup(settings, pipe, pipe.scheduler, output, result, values, work, judge)
        values |= {"scheduler_class": type(pipe.scheduler).__name__, "labels": group.labels()}
        groups.append(group)
    # What is wrong with any of them is told before the first image.
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
        # It is not there where nothing was left to draw, and not empty where somebody put something into it.
        unfinished_folder(output).rmdir()
    work.end()
    return result


def _fresh(settings: AblationSettings, pipe: Any, left_out: dict[str, str]) -> dict[str, Any]:
    """The result before anything is drawn."""
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
            {
                "guidance": guidance,
                "scheduler": scheduler,
                "steps": steps,
                "labels": [],
                "reference": None,
                "cells": [],
            }
            for guidance, scheduler, steps in product(guidances, schedulers, settings.steps)
        ],
    }


def _judge(settings: AblationSettings, pipe: Any) -> tuple[Judge | None, str]:
    """The judge of the images, or why there is none."""
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
