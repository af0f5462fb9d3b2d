"""Generates and measures the images of `GenerationSettings`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from DeepCache.config import DeepCacheConfig
from DeepCache.generation.comparison import compare_side_by_side
from DeepCache.generation.finite import NotFiniteError, finite_images
from DeepCache.generation.output import OutputFolder
from DeepCache.generation.pipeline_call import pipeline_call
from DeepCache.generation.settings import GenerationSettings, check_against_pipeline, check_plan
from DeepCache.models.device import execution_device, wait_for_device
from DeepCache.models.identity import weights_note
from DeepCache.models.memory import vae_notes
from DeepCache.plan import Plan
from DeepCache.runtime import runtime_notes
from DeepCache.schedule import AdaptiveSchedule, Step, StepSchedule, pattern_of
from DeepCache.text import shortened, shown

if TYPE_CHECKING:
    from PIL.Image import Image

    from DeepCache.engine.attach import DeepCacheEngine
    from DeepCache.engine.stats import TrajectoryStats

__all__ = ["GeneratedFile", "GeneratedImage", "StepProgress", "generate"]

# Enough for one full and one shallow step: one-time work of a device is done before the measurement.
_WARM_UP_STEPS = 2
# Settings that all images of a run share.
_SHARED = ("model", "vae", "config", "steps", "guidance", "cache")


@dataclass(frozen=True)
class StepProgress:
    """Progress after a step.

    Args:
        image: number of the image, from 1.
        images: number of images.
        accelerated: whether DeepCache is applied; False for the original of a comparison.
        step: steps done.
        steps: steps of the run.
        pattern: one character per step done: `F` for a full, `.` for a shallow and `-` for a skipped one.
    """

    image: int
    images: int
    accelerated: bool
    step: int
    steps: int
    pattern: str


@dataclass(frozen=True)
class GeneratedFile:
    """An image and its file.

    Args:
        image: the image.
        seconds: duration of the whole pipeline call.
        path: the file.
    """

    image: Image
    seconds: float
    path: Path


@dataclass(frozen=True)
class GeneratedImage:
    """An image generated with DeepCache and, for a comparison, without.

    Args:
        prompt: its prompt.
        seed: its seed.
        accelerated: the image with DeepCache.
        stats: statistics of its denoising run.
        original: the image without DeepCache; None without a comparison.
        comparison: the file with the two side by side.
        psnr: PSNR to the original in dB; `inf` if the images are identical.
        ssim: structural similarity to the original; None also for images that are too small.
    """

    prompt: str
    seed: int
    accelerated: GeneratedFile
    stats: TrajectoryStats
    original: GeneratedFile | None = None
    comparison: Path | None = None
    psnr: float | None = None
    ssim: float | None = None

    @property
    def speed_up(self) -> float | None:
        """Seconds without DeepCache over seconds with it; None without a comparison."""
        return None if self.original is None else self.original.seconds / self.accelerated.seconds


def generate(
    pipe: Any,
    settings: GenerationSettings | Sequence[GenerationSettings],
    output: OutputFolder,
    *,
    compare: bool = False,
    on_step: Callable[[StepProgress], None] | None = None,
) -> Iterator[GeneratedImage]:
    """Generates and saves the images of the settings, one pipeline call each.

    Each image has its own generator on the CPU, and is saved before the next one is generated. DeepCache is removed
    from the pipeline at the end, also if it was applied before.

    Args:
        pipe: a text-to-image pipeline with a U-Net.
        settings: the settings. Several may differ in their prompts, negative prompts, seeds, sizes and images per
            prompt.
        output: where to save the images.
        compare: whether to generate each image without DeepCache as well, and to save the two side by side. A short run
            warms up before (a whole run if the U-Net is compiled).
        on_step: called after each step, if the pipeline supports step callbacks.

    Raises:
        TypeError: the pipeline has no U-Net that DeepCache supports.
        ValueError: there is no prompt, the pipeline does not support the settings, or they differ in what all images of
            a run share; nothing is generated.
        NotFiniteError: an image has NaN or infinite values. It is not saved; those before it are.
        MemoryError: the device is out of memory.
        OSError: an image cannot be saved.

    Example:
        >>> from DeepCache.generation import GenerationSettings, OutputFolder, generate
        >>> from DeepCache.models import load_pipeline
        >>> settings = GenerationSettings(prompts=("a red circle",), steps=6)
        >>> folder = OutputFolder("deepcache-output")
        >>> for image in generate(load_pipeline("shapes"), settings, folder):
        ...     print(image.stats.pattern, image.accelerated.path.name)
        F..F.. 0001-a-red-circle-seed0.png
    """
    from DeepCache.engine.attach import DeepCacheEngine, apply_deepcache, remove_deepcache

    groups = (settings,) if isinstance(settings, GenerationSettings) else tuple(settings)
    jobs = [(each, prompt, seed) for each in groups for prompt, seed in each.jobs()]
    _check(groups, pipe)
    cache = groups[0].cache
    reported = "callback_on_step_end" in signature(pipe.__call__).parameters
    engine = apply_deepcache(pipe, cache)
    weights = weights_note(pipe)
    try:
        check_plan(cache, groups[0].steps, groups[0].guidance_for(pipe))
        # The original is compiled as well, so that the two differ in caching alone.
        whole = DeepCacheEngine(pipe, DeepCacheConfig(cache_interval=1, compile=cache.compile))
        if compare or runtime_notes(pipe):
            _warm_up(pipe, engine, whole, _call(pipe, *jobs[0]))
        for number, (each, prompt, seed) in enumerate(jobs, start=1):
            stem = output.new_stem(prompt, seed)
            files = {}
            for accelerated in (False, True) if compare else (True,):
                if accelerated:
                    engine.attach()
                elif cache.compile != "none":
                    whole.attach()
                else:
                    engine.detach()
                call = _call(pipe, each, prompt, seed)
                if reported and on_step is not None:
                    on = engine if accelerated else None
                    call["callback_on_step_end"] = _step_callback(each, (number, len(jobs)), on, on_step)
                try:
                    image, seconds = _timed(pipe, call)
                except NotFiniteError as error:
                    how = "with DeepCache" if accelerated else "without DeepCache"
                    raise NotFiniteError(f"cannot generate {shown(prompt)} (seed {seed}, {how}): {error}") from error
                size = {"width": image.width, "height": image.height}
                notes = _notes(pipe, each, prompt, seed, size | {"deepcache": accelerated} | weights)
                path = output.save(image, stem if accelerated else f"{stem}-original", notes)
                files[accelerated] = GeneratedFile(image, seconds, path)
            result = GeneratedImage(prompt, seed, files[True], engine.stats)
            if compare:
                result = _compared(result, files[False])
                sheet = _side_by_side(result, files[False], cache)
                result = replace(result, comparison=output.save(sheet, f"{stem}-compare", notes))
            yield result
    finally:
        remove_deepcache(pipe)


def _check(groups: tuple[GenerationSettings, ...], pipe: Any) -> None:
    if not any(each.prompts for each in groups):
        raise ValueError("there is no prompt")
    for each in groups:
        check_against_pipeline(each, pipe)
    for name in _SHARED:
        first = getattr(groups[0], name)
        other = next((each for each in groups if getattr(each, name) != first), None)
        if other is not None:
            raise ValueError(f"{name} must be the same for all images, got {first!r} and {getattr(other, name)!r}")


def _warm_up(pipe: Any, engine: DeepCacheEngine, whole: DeepCacheEngine, call: dict[str, Any]) -> None:
    """Compiles, exports the graphs of another runtime, or warms up, before anything is measured."""
    cache = engine.config
    if cache.compile != "none":
        for each in (engine, whole):
            each.attach()
            with suppress(NotFiniteError):
                _timed(pipe, call)
        return
    short = cache
    if cache.plan is not None:
        # A plan refuses another number of steps than its own.
        shallow = next((step for step in cache.plan.schedule.each if not step.full), Step(True))
        plan = Plan(StepSchedule((Step(True), shallow)), cache.plan.model, cache.plan.scheduler)
        short = replace(cache, plan=plan, force_plan=True)
    engine.configure(short)
    with suppress(NotFiniteError):
        _timed(pipe, call | {"num_inference_steps": min(_WARM_UP_STEPS, call["num_inference_steps"])})
    engine.configure(cache)


def _call(pipe: Any, settings: GenerationSettings, prompt: str, seed: int) -> dict[str, Any]:
    return pipeline_call(
        pipe,
        prompt,
        seed,
        steps=settings.steps,
        guidance=settings.guidance_for(pipe),
        negative_prompt=settings.negative_prompt,
        size=settings.size,
        inputs=settings.inputs,
    )


def _step_callback(
    settings: GenerationSettings,
    place: tuple[int, int],
    engine: DeepCacheEngine | None,
    on_step: Callable[[StepProgress], None],
) -> Callable[..., dict[str, Any]]:
    """Reports each step to `on_step`; `place` is the number of the image and of all images."""
    cache = DeepCacheConfig(cache_interval=1) if engine is None else settings.cache
    adaptive = isinstance(cache.effective_schedule, AdaptiveSchedule)

    def at_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        # Second-order schedulers run more steps than requested.
        steps = getattr(pipe, "num_timesteps", settings.steps)
        # An adaptive schedule decides during the run.
        pattern = engine.pattern if engine is not None and adaptive else pattern_of(cache.steps(steps))[: step + 1]
        on_step(StepProgress(*place, engine is not None, step + 1, steps, pattern))
        return tensors

    return at_step_end


def _timed(pipe: Any, call: dict[str, Any]) -> tuple[Image, float]:
    """The image of a pipeline call, and its seconds."""
    import torch

    try:
        device = execution_device(pipe)
        wait_for_device(device)
        start = time.perf_counter()
        with finite_images(pipe):
            image = pipe(**call).images[0]
        wait_for_device(device)
        return image, time.perf_counter() - start
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            "the device has not enough memory for this; try a smaller size, dtype float16, --offload or --vae-tiling"
        ) from error


def _notes(pipe: Any, settings: GenerationSettings, prompt: str, seed: int, more: dict[str, Any]) -> dict[str, Any]:
    """The metadata of an image."""
    return {
        "prompt": prompt,
        "negative_prompt": settings.negative_prompt,
        "seed": str(seed),
        "settings": {
            "model": settings.model,
            "vae": settings.vae,
            **({} if settings.config is None else {"config": settings.config}),
            "pipeline": type(pipe).__name__,
            "scheduler": type(pipe.scheduler).__name__,
            "steps": settings.steps,
            "guidance": settings.guidance_for(pipe),
            **settings.cache.to_dict(),
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "device": str(execution_device(pipe)),
            **runtime_notes(pipe),
            **vae_notes(pipe),
            **({"loras": [list(lora) for lora in settings.loras]} if settings.loras else {}),
            **({"embeddings": list(settings.embeddings)} if settings.embeddings else {}),
            **settings.inputs.notes(),
            "versions": {name: version(name) for name in ("DeepCache", "diffusers", "torch")},
            **more,
        },
    }


def _compared(result: GeneratedImage, original: GeneratedFile) -> GeneratedImage:
    """The result with its fidelity to the original."""
    from DeepCache.metrics import SSIM_SHORTEST_SIDE, psnr, ssim

    images, reference = [result.accelerated.image], [original.image]
    measurable = min(original.image.size) >= SSIM_SHORTEST_SIDE
    return replace(
        result,
        original=original,
        psnr=float(psnr(images, reference)),
        ssim=float(ssim(images, reference)) if measurable else None,
    )


def _side_by_side(result: GeneratedImage, original: GeneratedFile, cache: DeepCacheConfig) -> Image:
    cost = f"{result.accelerated.seconds:.2f} s, {result.speed_up:.2f}x as fast"
    if result.stats.mac_share is not None:
        cost += f", {result.stats.mac_share:.0%} of the MACs"
    fidelity = "identical to the original"
    if result.psnr != math.inf:
        fidelity = f"PSNR {result.psnr:.1f} dB"
        if result.ssim is not None:
            fidelity += f", SSIM {result.ssim:.3f}"
    return compare_side_by_side(
        original.image,
        result.accelerated.image,
        title=shortened(result.prompt),
        captions=(
            ("Original", f"{original.seconds:.2f} s"),
            (f"DeepCache, {_summary(cache)}", cost, fidelity),
        ),
    )


def _summary(cache: DeepCacheConfig) -> str:
    if cache.plan is not None:
        return "tuned plan"
    adaptive = cache.skip_mode == "adaptive"
    parts = [f"threshold {cache.threshold:g}" if adaptive else f"interval {cache.cache_interval}"]
    if cache.between != "skipped":
        parts.append(f"branch {cache.cache_branch_id}")
    if cache.between != "shallow":
        parts.append(f"{cache.between} steps")
    if cache.forecast != "none":
        parts.append(f"{cache.forecast} forecast")
    return ", ".join(parts)
