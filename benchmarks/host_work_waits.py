"""Finds where schedulers and pipelines make the host wait, with the simulated device; times a scheduler's step on the
host; and checks settings that avoid the waits. A part of `benchmarks.host_work`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from time import thread_time_ns
from typing import Any

import diffusers
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from rich.progress import track
from torch import Tensor

import DeepCache
from benchmarks.simulated_device import DEVICE, Watch, on_device, simulated_device
from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.models import ARCHITECTURES, SCHEDULER_ALIASES, load_pipeline

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {name: (kind, {}) for name, kind in SCHEDULER_ALIASES.items()} | {
    "dpm++-2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "edm-dpm++": ("EDMDPMSolverMultistepScheduler", {}),
    "edm-euler": ("EDMEulerScheduler", {}),
    "ipndm": ("IPNDMScheduler", {}),
    "sa": ("SASolverScheduler", {}),
}
# That of Stable Diffusion; each scheduler uses the values it supports.
NOISE_SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
STEPS = 20
LATENTS = {"1x4x128x128": (1, 4, 128, 128), "one value": (1, 1, 1, 1)}

PACKAGE = Path(diffusers.__file__).parent
# Waits are attributed to code in these folders.
SCHEDULER_CODE = (PACKAGE / "schedulers",)
ALL_CODE = (*SCHEDULER_CODE, PACKAGE / "pipelines", PACKAGE / "models", Path(DeepCache.__file__).parent)

# Components of the pipelines that are not needed here.
ABSENT: dict[type[Any], dict[str, Any]] = {
    StableDiffusionPipeline: dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    | {"requires_safety_checker": False},
    StableDiffusionXLPipeline: dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
}


# Schedulers


def make_scheduler(name: str, **options: Any) -> Any:
    """The scheduler of that name in `SCHEDULERS`, with Stable Diffusion's noise schedule."""
    kind, own = SCHEDULERS[name]
    return getattr(diffusers, kind).from_config(NOISE_SCHEDULE, **own, **options)


def scheduler_waits(
    scheduler: Any, folders: tuple[Path, ...] = SCHEDULER_CODE, steps: int = STEPS, generator: Any = None
) -> Watch:
    """Runs the steps of a scheduler on the simulated device."""
    with simulated_device(folders) as watch, _quiet():
        scheduler.set_timesteps(steps, device=DEVICE)
        sample, prediction = (torch.randn(1, 4, 8, 8, device=DEVICE) for _ in range(2))
        options = _options_of_step(scheduler, generator)
        for watch.step, timestep in enumerate(scheduler.timesteps):
            scheduler.scale_model_input(sample, timestep)
            sample = scheduler.step(prediction, timestep, sample, **options).prev_sample
    return watch


def scheduler_rows(rounds: int) -> list[dict[str, Any]]:
    """The time of a step on the host and its waits, for each scheduler."""
    times: dict[str, dict[str, list[float]]] = {name: {latents: [] for latents in LATENTS} for name in SCHEDULERS}
    for number in track(range(-1, rounds), description="schedulers, the first round to warm up"):
        for name in SCHEDULERS:
            for latents, shape in LATENTS.items():
                microseconds = _time_steps(make_scheduler(name), shape)
                if number >= 0:
                    times[name][latents].append(microseconds)
    rows = []
    for name, (kind, options) in SCHEDULERS.items():
        watch = scheduler_waits(make_scheduler(name))
        from_host = scheduler_waits(make_scheduler(name), generator=torch.Generator())
        rows.append(
            {
                "name": name,
                "class": kind,
                "options": options,
                "microseconds": {latents: round(median(values), 1) for latents, values in times[name].items()},
                "waits": watch.each_step(),
                "waits_with_generator_on_host": from_host.each_step(),
                "operations": [watch.operations[step] for step in range(len(watch.each_step()))],
                "places": watch.places(),
                "every_round": times[name],
            }
        )
    return rows


@torch.no_grad()
def _time_steps(scheduler: Any, shape: tuple[int, ...]) -> float:
    """Microseconds of a step after the first, including the scaling of the U-Net's input."""
    sample, prediction, spent = torch.randn(shape), torch.randn(shape), []
    scheduler.set_timesteps(STEPS)
    with _quiet():
        for timestep in scheduler.timesteps:
            start = thread_time_ns()
            scheduler.scale_model_input(sample, timestep)
            sample = scheduler.step(prediction, timestep, sample).prev_sample
            spent.append(thread_time_ns() - start)
    return median(spent[1:]) / 1000


def _options_of_step(scheduler: Any, generator: Any) -> dict[str, Any]:
    takes = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": generator} if takes and generator is not None else {}


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # From torchsde, about the ends of its interval.
        warnings.filterwarnings("ignore", message="Should have t")
        yield


# Pipelines


def pipeline_waits(kind: type[Any], scheduler: Any, config: DeepCacheConfig | None = None, steps: int = STEPS) -> Watch:
    """Runs a tiny Stable Diffusion or SDXL pipeline on the simulated device."""
    architecture = ARCHITECTURES["sdxl-tiny" if kind is StableDiffusionXLPipeline else "sd15-tiny"]
    unet = UNet2DConditionModel(**architecture.networks["unet"].config).eval()
    pipe = kind(**ABSENT[kind], unet=unet, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    if config is not None:
        apply_deepcache(pipe, config)
    embeds = dict.fromkeys(("prompt_embeds", "negative_prompt_embeds"), (1, 3, unet.config.cross_attention_dim))
    if kind is StableDiffusionXLPipeline:
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        embeds |= {"pooled_prompt_embeds": (1, pooled), "negative_pooled_prompt_embeds": (1, pooled)}
    with simulated_device(ALL_CODE) as watch, _quiet():
        for module in unet.modules():
            for tensors in (module._parameters, module._buffers):
                tensors.update({name: on_device(value) for name, value in tensors.items()})

        scale, numbers = scheduler.scale_model_input, count()

        def begin_step(*args: Any) -> Tensor:
            watch.step = next(numbers)
            return scale(*args)

        scheduler.scale_model_input = begin_step
        pipe(
            **{name: torch.randn(shape, device=DEVICE) for name, shape in embeds.items()},
            num_inference_steps=steps,
            height=64,
            width=64,
            output_type="latent",
        )
    return watch


def pipeline_rows(methods: Mapping[str, DeepCacheConfig]) -> list[dict[str, Any]]:
    """The waits of two pipelines, with DeepCache and without."""
    rows = []
    for kind in ABSENT:
        for name in ("ddim", "dpm++", "euler"):
            for method, config in {"no caching": None, **methods}.items():
                watch = pipeline_waits(kind, make_scheduler(name), config)
                row = {"pipeline": kind.__name__, "scheduler": name, "method": method}
                rows.append(row | {"waits": watch.each_step(), "places": watch.places()})
    return rows


# Settings


def timesteps_on_host(scheduler: Any) -> Any:
    """Keeps the timesteps of a scheduler on the host."""
    set_timesteps = scheduler.set_timesteps
    scheduler.set_timesteps = lambda *args, device=None, **options: set_timesteps(*args, **options)
    return scheduler


def table_on_device(scheduler: Any) -> Any:
    """Moves the noise levels of a scheduler to the simulated device."""
    scheduler.alphas_cumprod = on_device(scheduler.alphas_cumprod)
    return scheduler


@dataclass(frozen=True)
class Setting:
    """A setting that may avoid the waits of a scheduler.

    Args:
        scheduler: the scheduler that waits.
        label: the setting as Markdown.
        make: makes the scheduler with the setting, or an alternative.
        same: whether the image must be the same up to rounding.
    """

    scheduler: str
    label: str
    make: Callable[[], Any]
    same: bool = False


def _with_timesteps_on_host(name: str) -> Setting:
    return Setting(name, "timesteps on the host", lambda: timesteps_on_host(make_scheduler(name)), same=True)


_DPM = "`DPMSolverMultistepScheduler`"
SETTINGS = (
    Setting("ddim", "`alphas_cumprod` on the device", lambda: table_on_device(make_scheduler("ddim"))),
    *map(_with_timesteps_on_host, ("ddim", "ddpm", "lcm", "pndm", "tcd")),
    Setting(
        "ddim",
        '`EulerDiscreteScheduler`, `final_sigmas_type="sigma_min"`',
        lambda: make_scheduler("euler", final_sigmas_type="sigma_min"),
        same=True,
    ),
    Setting("ddpm", "`EulerAncestralDiscreteScheduler`", lambda: make_scheduler("euler-a"), same=True),
    Setting("pndm", _DPM, lambda: make_scheduler("dpm++")),
    Setting("unipc", _DPM, lambda: make_scheduler("dpm++")),
    Setting("sa", "`tau_func=lambda timestep: 1`", lambda: make_scheduler("sa", tau_func=lambda timestep: 1)),
)


def setting_rows() -> list[dict[str, Any]]:
    """The waits of a Stable Diffusion pipeline before and after a setting, and the difference of the images."""
    pipe = load_pipeline("shapes")
    pipe.set_progress_bar_config(disable=True)
    rows = []
    for setting in track(SETTINGS, description="settings"):
        before, after = (
            pipeline_waits(StableDiffusionPipeline, scheduler).each_step()
            for scheduler in (make_scheduler(setting.scheduler), setting.make())
        )
        row = {"scheduler": setting.scheduler, "setting": setting.label, "waits": before, "waits_with_it": after}
        rows.append(row | {"levels_apart": levels_apart(pipe, setting) if setting.same else None})
    return rows


def levels_apart(pipe: Any, setting: Setting) -> float:
    """The largest difference between images with and without a setting, in levels of 255."""
    images = []
    for pipe.scheduler in (make_scheduler(setting.scheduler), setting.make()):
        generator = torch.Generator().manual_seed(0)
        generated = pipe("a red circle", num_inference_steps=10, generator=generator, output_type="pt")
        images.append(generated.images)
    return round(255 * float((images[0] - images[1]).abs().max()), 3)
