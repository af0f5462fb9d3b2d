"""What to draw and how, as one validated, frozen value."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from DeepCache.config import DeepCacheConfig
from DeepCache.generation.image_inputs import ImageInputs
from DeepCache.models.adapters import Lora
from DeepCache.models.loading import recommended_guidance
from DeepCache.prompts.rows import shown

__all__ = ["GenerationSettings", "check_against_pipeline", "check_plan", "parse_size"]

_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class GenerationSettings:
    """What to draw and how.

    Args:
        prompts (`tuple` of `str`):
            One or more prompts.
        model (`str`, defaults to `"shapes"`):
            What `load_pipeline` was given; it is written into the images.
        negative_prompt (`str`, defaults to `""`):
            What the images should not show; it counts only with a guidance scale above 1.
        steps (`int`, defaults to `50`):
            Denoising steps.
        guidance (`float`, *optional*):
            The guidance scale; by default the one recommended for the model.
        size (`tuple` of `int`, *optional*):
            Width and height in pixels; the pipeline's own by default.
        seed (`int`, defaults to `0`):
            Seed of the first image; each further one has the next number, so that any of them can
            be drawn again alone.
        images_per_prompt (`int`, defaults to `1`):
            Images of each prompt.
        cache (`DeepCacheConfig`):
            The settings of DeepCache.
        vae (`str`, *optional*):
            The VAE that `load_pipeline` was given; it is written into the images.
        config (`str`, *optional*):
            The configuration that `load_pipeline` was given; it is written into the images.
        loras (`tuple` of `Lora`):
            The LoRAs that were loaded; they are written into the images.
        embeddings (`tuple` of `str`):
            The textual inversions that were loaded; they are written into the images.
        inputs (`ImageInputs`):
            Images to start from.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> GenerationSettings(prompts=("a red circle",), images_per_prompt=2).count
        2
    """

    prompts: tuple[str, ...]
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

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("there is no prompt to draw")
        for prompt in (*self.prompts, self.negative_prompt):
            _check_text(prompt)
        if any(not prompt.strip() for prompt in self.prompts):
            raise ValueError("a prompt must not be empty")
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more, got {self.steps}")
        if self.images_per_prompt < 1:
            raise ValueError(f"images per prompt must be 1 or more, got {self.images_per_prompt}")
        if self.guidance is not None and not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ValueError(f"guidance must be a number from 0, got {self.guidance}")
        last = self.seed + self.count - 1
        if self.seed < 0 or last > _LARGEST_SEED:
            raise ValueError(f"seed must be from 0 to 2**63 - {self.count}, got {self.seed}")

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.prompts) * self.images_per_prompt

    def jobs(self) -> Iterator[tuple[str, int]]:
        """Prompt and seed of every image, in the order in which they are drawn."""
        for index in range(self.count):
            yield self.prompts[index // self.images_per_prompt], self.seed + index


def parse_size(text: str) -> tuple[int, int]:
    """Width and height in pixels from `512x768`, or from one number for a square.

    Raises:
        ValueError: the text is no size.

    Example:
        >>> parse_size("512x768"), parse_size("64")
        ((512, 768), (64, 64))
    """
    match = re.fullmatch(r"(\d{1,6})(?:[x×](\d{1,6}))?", text.strip().lower(), re.ASCII)
    if match is None:
        raise ValueError(f"a size is WIDTHxHEIGHT such as 512x768, or one number, got {text!r}")
    width, height = match.groups()
    return int(width), int(height or width)


def check_against_pipeline(settings: GenerationSettings, pipe: Any) -> None:
    """Refuses what this pipeline cannot draw.

    Raises:
        ValueError: the size or the number of steps does not fit the pipeline, it takes no size, guidance scale or
            negative prompt where one is given, or it does not draw images from prompts alone.
    """
    from inspect import signature

    parameters = signature(pipe.__call__).parameters
    if "prompt" not in parameters or "num_frames" in parameters or ("image" in parameters) is not bool(settings.inputs):
        needed = ". Give --image and --mask" if "mask_image" in parameters else ""
        raise ValueError(f"a {type(pipe).__name__} does not generate images from prompts alone{needed}")
    if settings.guidance is not None and "guidance_scale" not in parameters:
        raise ValueError(f"a {type(pipe).__name__} takes no guidance scale, got {settings.guidance:g}; leave it out")
    if settings.negative_prompt:
        _check_negative_prompt(settings, pipe)
    if settings.size is not None and not settings.inputs and not {"width", "height"} <= parameters.keys():
        raise ValueError(
            f"a {type(pipe).__name__} takes no size, got {'x'.join(map(str, settings.size))}; leave it out"
        )
    most = getattr(pipe.scheduler.config, "num_train_timesteps", None)
    if most is not None and settings.steps > most:
        raise ValueError(f"steps must be {most} or fewer for this model, got {settings.steps}")
    if settings.size is not None:
        # The Stable Diffusion pipelines take multiples of 8 whatever their autoencoder's factor.
        multiple = math.lcm(8, getattr(pipe, "vae_scale_factor", 8))
        for name, side in zip(("width", "height"), settings.size, strict=True):
            if side % multiple or side == 0:
                below, above = side - side % multiple, side - side % multiple + multiple
                nearest = f"{below} and {above}" if below else f"{above}"
                raise ValueError(
                    f"{name} must be a multiple of {multiple} for this model, got {side}; nearest: {nearest}"
                )


def _check_negative_prompt(settings: GenerationSettings, pipe: Any) -> None:
    """Refuses a negative prompt that the pipeline does not take or would ignore."""
    from inspect import signature

    if "negative_prompt" not in signature(pipe.__call__).parameters:
        raise ValueError(
            f"a {type(pipe).__name__} takes no negative prompt, got {shown(settings.negative_prompt)}; leave it out"
        )
    guidance = settings.guidance
    if guidance is None:
        guidance = recommended_guidance(settings.model, pipe)
    if guidance is not None and guidance <= 1:
        raise ValueError(
            f"a negative prompt counts only with a guidance scale above 1, got {guidance:g}; leave it out, or raise "
            "the guidance scale"
        )


def check_plan(cache: DeepCacheConfig, steps: int, guidance: float | None = None) -> None:
    """Refuses a plan for another number of steps or guidance scale before anything is generated.

    Args:
        cache: the settings with the plan.
        steps: denoising steps.
        guidance: the guidance scale, as far as it is known.

    Raises:
        ValueError: the plan is for others, and not forced.
    """
    if cache.plan is None or cache.force_plan:
        return
    tuned = cache.plan.tuned.get("steps", steps)
    if tuned != steps:
        raise ValueError(
            f"the plan was tuned for {tuned} steps, and {steps} are asked for; take {tuned}, tune a plan "
            "for this number, or force it (--force-plan)"
        )
    if guidance is not None:
        from DeepCache.engine.fingerprint import other_guidance, refuse

        # Below 1 pipelines disable guidance, which is a scale of 1.
        refuse(other_guidance(cache.plan, max(guidance, 1.0)))


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"a prompt is not valid text: {shown(text)}") from error
