"""Draws the images of `GenerationSettings`, one pipeline call each, and measures them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from DeepCache.config import DeepCacheConfig
from DeepCache.generation.comparison import compare_side_by_side
from DeepCache.generation.finite import NotFiniteError, finite_images
from DeepCache.generation.output import OutputFolder
from DeepCache.generation.settings import GenerationSettings, check_against_pipeline, check_plan
from DeepCache.models.device import execution_device, wait_for_device
from DeepCache.models.identity import weights_note
from DeepCache.models.loading import recommended_guidance
from DeepCache.models.memory import vae_notes
from DeepCache.plan import Plan
from DeepCache.prompts.rows import shortened, shown
from DeepCache.runtime import runtime_notes
from DeepCache.schedule import AdaptiveSchedule, Step, StepSchedule, pattern_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from DeepCache.engine.attach import DeepCacheEngine
    from DeepCache.engine.stats import TrajectoryStats

__all__ = ["Drawing", "GeneratedImage", "StepProgress", "generate"]

# Enough for one full and one shallow step: whatever a device does only once is done before timing.
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class StepProgress:
    """How far the drawing is, after each step.

    Args:
        image: number of the image, from 1.
        images: how many there are.
        accelerated: whether DeepCache is on; off while the original for a comparison is drawn.
        step: steps done.
        steps: steps there are.
        pattern: one character a step done, `F` for a full one, `.` for a shallow one, `-` for a skipped one.
    """

    image: int
    images: int
    accelerated: bool
    step: int
    steps: int
    pattern: str


@dataclass(frozen=True)
class Drawing:
    """One drawn image.

    Args:
        image: the image.
        seconds: what the whole pipeline call took.
        path: the file it was written to.
    """

    image: Image
    seconds: float
    path: Path


@dataclass(frozen=True)
class GeneratedImage:
    """An image drawn with DeepCache and, where a comparison was asked for, without.

    Args:
        prompt: its prompt.
        seed: its seed.
        drawing: the image drawn with DeepCache.
        stats: what its trajectory did.
        original: the same drawn without DeepCache.
        comparison: the file with the two side by side.
        psnr: fidelity to the original in dB; `inf` where the two are identical.
        ssim: structural similarity to the original; None too where the images are too small.
    """

    prompt: str
    seed: int
    drawing: Drawing
    stats: TrajectoryStats
    original: Drawing | None = None
    comparison: Path | None = None
    psnr: float | None = None
    ssim: float | None = None

    @property
    def speed_up(self) -> float | None:
        """Seconds without DeepCache over seconds with it; None without a comparison."""
        return None if self.original is None else self.original.seconds / self.drawing.seconds


def generate(
    pipe: Any,
    settings: GenerationSettings | Sequence[GenerationSettings],
    output: OutputFolder,
    *,
    compare: bool = False,
    on_step: Callable[[StepProgress], None] | None = None,
) -> Iterator[GeneratedImage]:
    """Draws and saves the images of the settings, one by one.

    Each image is one pipeline call with a generator of its own on the CPU, and is written as soon
    as it is drawn. Any DeepCache that is on the pipeline is taken off, at the end too.

    Args:
        pipe: a text-to-image pipeline with a U-Net.
        settings: what to draw and how. Several, one after the other, may differ in their prompts, negative prompts,
            seeds, sizes and images per prompt.
        output: where to write the images.
        compare: whether to draw each image without DeepCache as well, after one discarded short
            run to warm up (whole runs where the U-Net is compiled), and to write the two side by side.
        on_step: called after every step, where the pipeline tells of its steps.

    Raises:
        TypeError: the pipeline has no U-Net that DeepCache can work on.
        ValueError: the settings do not fit the pipeline, or differ in what all images have in common; nothing has been
            drawn then.
        NotFiniteError: an image has NaN or infinite values; it is not written, and those before it stay.
        MemoryError: the device has not enough memory.
        OSError: an image cannot be written.

    Example:
        >>> from DeepCache.generation import GenerationSettings, OutputFolder, generate
        >>> from DeepCache.models import load_pipeline
        >>> settings = GenerationSettings(prompts=("a red circle",), steps=6)
        >>> folder = OutputFolder("deepcache-output")
        >>> for image in generate(load_pipeline("shapes"), settings, folder):
        ...     print(image.stats.pattern, image.drawing.path.name)
        F..F.. 0001-a-red-circle-seed0.png
    """
    from DeepCache.engine.attach import DeepCacheEngine, apply_deepcache, remove_deepcache

    groups = (settings,) if isinstance(settings, GenerationSettings) else tuple(settings)
    _check_alike(groups)
    for each in groups:
        check_against_pipeline(each, pipe)
    cache, steps = groups[0].cache, groups[0].steps
    jobs = [(each, prompt, seed) for each in groups for prompt, seed in each.jobs()]
    engine = apply_deepcache(pipe, cache)
    compiled = cache.compile != "none"
    weights = weights_note(pipe)
    try:
        check_plan(cache, steps, _guidance(pipe, groups[0]))
        # The original is compiled as well, so that caching is all that tells the two apart.
        whole = DeepCacheEngine(pipe, DeepCacheConfig(cache_interval=1, compile=cache.compile))
        if compare or runtime_notes(pipe):
            _warm_up(pipe, (engine, whole), cache, _call(pipe, *jobs[0]))
        for number, (each, prompt, seed) in enumerate(jobs, start=1):
            stem = output.new_stem(prompt, seed)
            drawings = {}
            for accelerated in (False, True) if compare else (True,):
                if accelerated:
                    engine.attach()
                elif compiled:
                    whole.attach()
                else:
                    engine.detach()
                call = _call(pipe, each, prompt, seed)
                if on_step is not None:
                    on = engine if accelerated else None
                    call |= _step_callback(pipe, each, (number, len(jobs)), on, on_step)
                with _named(prompt, seed, accelerated):
                    image, seconds = _draw(pipe, call)
                size = {"width": image.width, "height": image.height}
                notes = _notes(pipe, each, prompt, seed, size | {"deepcache": accelerated} | weights)
                path = output.save(image, stem if accelerated else f"{stem}-original", notes)
                drawings[accelerated] = Drawing(image, seconds, path)
            result = GeneratedImage(prompt, seed, drawings[True], engine.stats)
            if compare:
                result = _compared(result, drawings[False])
                picture = _side_by_side(result, drawings[False], each)
                result = replace(result, comparison=output.save(picture, f"{stem}-compare", notes))
            yield result
    finally:
        remove_deepcache(pipe)


def _check_alike(groups: tuple[GenerationSettings, ...]) -> None:
    """Refuses settings that differ in what all images of a run have in common."""
    if not groups:
        raise ValueError("there is no prompt to draw")
    for name in ("model", "vae", "config", "steps", "guidance", "cache"):
        first = getattr(groups[0], name)
        other = next((each for each in groups if getattr(each, name) != first), None)
        if other is not None:
            raise ValueError(f"{name} must be the same for all images, got {first!r} and {getattr(other, name)!r}")


@contextmanager
def _named(prompt: str, seed: int, accelerated: bool) -> Iterator[None]:
    """Says which image it is that has NaN."""
    try:
        yield
    except NotFiniteError as error:
        what = "with DeepCache" if accelerated else "without DeepCache"
        raise NotFiniteError(f"cannot generate {shown(prompt)} (seed {seed}, {what}): {error}") from error


def _warm_up(
    pipe: Any, engines: tuple[DeepCacheEngine, DeepCacheEngine], cache: DeepCacheConfig, call: dict[str, Any]
) -> None:
    """Does what is done once before anything is timed: compiles, has graphs of another runtime made, warms up.

    Args:
        pipe: the pipeline.
        engines: that which accelerates, and that without caching.
        cache: the settings.
        call: what the pipeline is called with.
    """
    if cache.compile != "none":
        for engine in engines:
            engine.attach()
            _discard(pipe, call)
        return
    engines[0].configure(_short_run(cache))
    _discard(pipe, call | {"num_inference_steps": min(WARM_UP_STEPS, call["num_inference_steps"])})
    engines[0].configure(cache)


def _short_run(cache: DeepCacheConfig) -> DeepCacheConfig:
    """Settings for the short run to warm up: a plan refuses another number of steps than its own."""
    if cache.plan is None:
        return cache
    shallow = next((step for step in cache.plan.schedule.each if not step.full), Step(True))
    schedule = StepSchedule((Step(True), shallow))
    return replace(cache, plan=Plan(schedule, cache.plan.model, cache.plan.scheduler), force_plan=True)


def _call(pipe: Any, settings: GenerationSettings, prompt: str, seed: int) -> dict[str, Any]:
    """What the pipeline is called with for one image."""
    import torch

    call: dict[str, Any] = {
        "prompt": prompt,
        "num_inference_steps": settings.steps,
        # On the CPU whatever the device, so that a seed means the same everywhere.
        "generator": torch.Generator("cpu").manual_seed(seed),
    }
    if settings.negative_prompt:
        call["negative_prompt"] = settings.negative_prompt
    guidance = _guidance(pipe, settings)
    if guidance is not None:
        call["guidance_scale"] = guidance
    if settings.inputs:
        call |= settings.inputs.arguments(pipe, settings.size)
    elif settings.size is not None:
        call["width"], call["height"] = settings.size
    return call


def _guidance(pipe: Any, settings: GenerationSettings) -> float | None:
    if settings.guidance is not None:
        return settings.guidance
    return recommended_guidance(settings.model, pipe)


def _step_callback(
    pipe: Any,
    settings: GenerationSettings,
    place: tuple[int, int],
    engine: DeepCacheEngine | None,
    on_step: Callable[[StepProgress], None],
) -> dict[str, Any]:
    """The pipeline's argument for telling `on_step` of every step, where it has one; `place` is the number of the image
    and of all of them, `engine` the one that is on."""
    if "callback_on_step_end" not in signature(pipe.__call__).parameters:
        return {}
    accelerated = engine is not None
    cache = settings.cache if accelerated else DeepCacheConfig(cache_interval=1)
    adaptive = isinstance(cache.effective_schedule, AdaptiveSchedule)

    def at_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        # Schedulers of the second order take more steps than were asked for.
        steps = getattr(pipe, "num_timesteps", settings.steps)
        # An adaptive schedule decides on its way.
        pattern = engine.pattern if engine is not None and adaptive else pattern_of(cache.steps(steps))[: step + 1]
        on_step(StepProgress(*place, accelerated, step + 1, steps, pattern))
        return tensors

    return {"callback_on_step_end": at_step_end}


def _draw(pipe: Any, call: dict[str, Any]) -> tuple[Image, float]:
    """The image and the seconds of one whole pipeline call."""
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


def _discard(pipe: Any, call: dict[str, Any]) -> None:
    """One pipeline call whose image is not kept."""
    with suppress(NotFiniteError):
        _draw(pipe, call)


def _notes(pipe: Any, settings: GenerationSettings, prompt: str, seed: int, more: dict[str, Any]) -> dict[str, Any]:
    """What is noted in an image."""
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
            "guidance": _guidance(pipe, settings),
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


def _compared(result: GeneratedImage, original: Drawing) -> GeneratedImage:
    """The result with its fidelity to the original."""
    from DeepCache.metrics import SSIM_SHORTEST_SIDE, psnr, ssim

    images, reference = [result.drawing.image], [original.image]
    measurable = min(original.image.size) >= SSIM_SHORTEST_SIDE
    return replace(
        result,
        original=original,
        psnr=float(psnr(images, reference)),
        ssim=float(ssim(images, reference)) if measurable else None,
    )


def _in_words(cache: DeepCacheConfig) -> str:
    if cache.plan is not None:
        return "tuned plan"
    parts = [f"interval {cache.cache_interval}"]
    if cache.skip_mode == "adaptive":
        parts = [f"threshold {cache.threshold:g}"]
    if cache.between != "skipped":
        parts.append(f"branch {cache.cache_branch_id}")
    if cache.between != "shallow":
        parts.append(f"{cache.between} steps")
    if cache.forecast != "none":
        parts.append(f"{cache.forecast} forecast")
    return ", ".join(parts)


def _side_by_side(result: GeneratedImage, original: Drawing, settings: GenerationSettings) -> Image:
    cache = settings.cache
    name = f"DeepCache, {_in_words(cache)}"
    cost = f"{result.drawing.seconds:.2f} s, {result.speed_up:.2f}x as fast"
    if result.stats.mac_share is not None:
        cost += f", {result.stats.mac_share:.0%} of the MACs"
    fidelity = "identical to the original"
    if result.psnr != math.inf:
        fidelity = f"PSNR {result.psnr:.1f} dB"
        if result.ssim is not None:
            fidelity += f", SSIM {result.ssim:.3f}"
    return compare_side_by_side(
        original.image,
        result.drawing.image,
        title=shortened(result.prompt),
        captions=(("Original", f"{original.seconds:.2f} s"), (name, cost, fidelity)),
    )
