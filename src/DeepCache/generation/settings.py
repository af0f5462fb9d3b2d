"""Settings of a generation run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

from DeepCache.config import DeepCacheConfig
from DeepCache.generation.image_inputs import ImageInputs
from DeepCache.models.adapters import Lora
from DeepCache.models.loading import recommended_guidance
from DeepCache.runtime import check_runtime
from DeepCache.text import shown

__all__ = ["LARGEST_SEED", "GenerationSettings", "check_against_pipeline", "check_plan", "parse_size"]

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of a generation run: the prompts, the model and how it is loaded, and the settings of each call.

    Args:
        prompts (`tuple` of `str`):
            The prompts; empty for a batch, whose rows have their own.
        model (`str`, defaults to `"shapes"`):
            The model, as `load_pipeline` accepts it.
        negative_prompt (`str`, defaults to `""`):
            What the images should not show. It requires a guidance scale above 1.
        steps (`int`, defaults to `50`):
            Number of denoising steps.
        guidance (`float`, *optional*):
            Guidance scale; by default the one recommended for the model.
        size (`tuple` of `int`, *optional*):
            Width and height in pixels; by default those of the pipeline.
        seed (`int`, defaults to `0`):
            Seed of the first image. Each following image has the next number, so that any of them can be
            regenerated alone.
        images_per_prompt (`int`, defaults to `1`):
            Number of images per prompt.
        cache (`DeepCacheConfig`):
            Settings of DeepCache.
        vae (`str`, *optional*):
            A VAE that replaces the one of the model, as `load_pipeline` accepts it.
        config (`str`, *optional*):
            The configuration of a checkpoint, as `load_pipeline` accepts it.
        loras (`tuple` of `Lora`):
            LoRAs to load.
        embeddings (`tuple` of `str`):
            Textual inversions to load.
        inputs (`ImageInputs`):
            Images to start from.
        scheduler (`str`, *optional*):
            The scheduler, as `set_scheduler` accepts it; by default that of the model.
        dtype (`str`, defaults to `"auto"`):
            Dtype of the weights, as `load_pipeline` accepts it.
        runtime (`str`, defaults to `"torch"`):
            Runtime of the U-Net, see `DeepCache.export.use_runtime`.
        vae_tiling (`bool`, defaults to `False`):
            Whether the VAE decodes in tiles, see `DeepCache.models.divide_vae`.

    Raises:
        ValueError: a value is out of range, the plan was tuned for another number of steps or guidance scale, or the
            runtime does not support the settings of DeepCache.

    Example:
        >>> GenerationSettings(prompts=("a red circle",), images_per_prompt=2).count
        2
    """

    prompts: tuple[str, ...] = ()
    model: str = "shapes"
    negative_prompt: str = ""
    steps: int = 50
    guidance: float | None = None
    size: tuple[int, int] | None = None
    seed: int = 0
    images_per_prompt: int = 1
    cache: DeepCacheConfig = field(default_factory=DeepCacheConfig)
    vae: str | None = None
    config: str | None = None
    loras: tuple[Lora, ...] = ()
    embeddings: tuple[str, ...] = ()
    inputs: ImageInputs = field(default_factory=ImageInputs)
    scheduler: str | None = None
    dtype: str = "auto"
    runtime: str = "torch"
    vae_tiling: bool = False

    def __post_init__(self) -> None:
        for prompt in (*self.prompts, self.negative_prompt):
            try:
                prompt.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(f"a prompt is not valid text: {shown(prompt)}") from error
        if any(not prompt.strip() for prompt in self.prompts):
            raise ValueError("a prompt must not be empty")
        for name, value in (("steps", self.steps), ("images per prompt", self.images_per_prompt)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if self.guidance is not None and not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ValueError(f"guidance must be >= 0, got {self.guidance}")
        last = self.seed + max(self.count, 1) - 1
        if self.seed < 0 or last > LARGEST_SEED:
            raise ValueError(f"seed must be between 0 and 2**63 - {max(self.count, 1)}, got {self.seed}")
        check_plan(self.cache, self.steps, self.guidance)
        check_runtime(self.runtime, self.cache)

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.prompts) * self.images_per_prompt

    def jobs(self) -> Iterator[tuple[str, int]]:
        """Prompt and seed of each image, in the order of generation."""
        for index in range(self.count):
            yield self.prompts[index // self.images_per_prompt], self.seed + index

    def guidance_for(self, pipe: Any) -> float | None:
        """The guidance scale; the one recommended for the model if `guidance` is None."""
        return recommended_guidance(self.model, pipe) if self.guidance is None else self.guidance


def parse_size(text: str) -> tuple[int, int]:
    """Parses a width and height in pixels: `512x768`, or one number for a square.

    Raises:
        ValueError: the text is not a size.

    Example:
        >>> parse_size("512x768"), parse_size("64")
        ((512, 768), (64, 64))
    """
    match = re.fullmatch(r"(\d{1,6})(?:[x×](\d{1,6}))?", text.strip().lower(), re.ASCII)
    if match is None:
        raise ValueError(f"a size must be WIDTHxHEIGHT such as 512x768, or one number, got {text!r}")
    width, height = match.groups()
    return int(width), int(height or width)


def check_against_pipeline(settings: GenerationSettings, pipe: Any) -> None:
    """Checks that a pipeline supports the settings.

    Raises:
        ValueError: the pipeline does not support the size, number of steps, guidance scale or negative prompt, or does
            not generate images from prompts alone.
    """
    kind, guidance = type(pipe).__name__, settings.guidance
    parameters = signature(pipe.__call__).parameters
    if "prompt" not in parameters or "num_frames" in parameters or ("image" in parameters) is not bool(settings.inputs):
        fix = ". Give --image and --mask" if "mask_image" in parameters else ""
        raise ValueError(f"a {kind} does not generate images from prompts alone{fix}")
    if guidance is not None and "guidance_scale" not in parameters:
        raise ValueError(f"a {kind} does not support a guidance scale, got {guidance:g}. Remove it")
    if settings.negative_prompt:
        if "negative_prompt" not in parameters:
            text = shown(settings.negative_prompt)
            raise ValueError(f"a {kind} does not support a negative prompt, got {text}. Remove it")
        scale = settings.guidance_for(pipe)
        if scale is not None and scale <= 1:
            raise ValueError(
                f"a negative prompt requires a guidance scale above 1, got {scale:g}. Remove the negative prompt, or "
                "increase the guidance scale"
            )
    if settings.size is not None and not settings.inputs and not {"width", "height"} <= parameters.keys():
        raise ValueError(f"a {kind} does not support a size, got {'x'.join(map(str, settings.size))}. Remove it")
    most = getattr(pipe.scheduler.config, "num_train_timesteps", None)
    if most is not None and settings.steps > most:
        raise ValueError(f"steps must be <= {most} for this model, got {settings.steps}")
    # The Stable Diffusion pipelines require multiples of 8 regardless of the factor of their VAE.
    multiple = math.lcm(8, getattr(pipe, "vae_scale_factor", 8))
    width, height = settings.size or (multiple, multiple)
    for name, side in (("width", width), ("height", height)):
        if side % multiple or side == 0:
            below, above = side - side % multiple, side - side % multiple + multiple
            nearest = f"{below} and {above}" if below else f"{above}"
            raise ValueError(f"{name} must be a multiple of {multiple} for this model, got {side}; nearest: {nearest}")


def check_plan(cache: DeepCacheConfig, steps: int, guidance: float | None = None) -> None:
    """Raises a ValueError if a plan was tuned for other steps or guidance scales, unless it is forced."""
    if cache.plan is None or cache.force_plan:
        return
    tuned = cache.plan.tuned.get("steps", steps)
    if tuned != steps:
        raise ValueError(
            f"the plan was tuned for {tuned} steps, got {steps}. Use {tuned} steps, tune a plan for {steps}, or force "
            "it (--force-plan)"
        )
    if guidance is not None:
        from DeepCache.engine.fingerprint import other_guidance, refuse

        # Pipelines disable guidance at 1 and below, so any such scale equals 1.
        refuse(other_guidance(cache.plan, max(guidance, 1.0)))
