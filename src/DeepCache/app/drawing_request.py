"""What a visitor asks for: the fields of the form, read and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from DeepCache.config import DeepCacheConfig
from DeepCache.generation import GenerationSettings
from DeepCache.plan import Plan

__all__ = [
    "LARGEST_PLAN",
    "LARGEST_SIDE",
    "LONGEST_PROMPT",
    "MOST_GUIDANCE",
    "MOST_STEPS",
    "DrawingRequest",
    "read_request",
]

MOST_STEPS = 250
"""The steps that a visitor may ask for: one who asks for all that a scheduler has keeps the others waiting."""
LONGEST_PROMPT = 2000
"""The characters of a prompt, far more than a text encoder reads."""
MOST_GUIDANCE = 20
"""The highest guidance scale: images are overexposed long before it."""
LARGEST_SIDE = 4096
"""The pixels of a side, whatever the model; `ModelDefaults.check_size` has the limit of each."""

LARGEST_PLAN = 1_000_000
"""The characters of a plan, far more than one of as many steps has."""


@dataclass(frozen=True)
class DrawingRequest:
    """A picture to draw.

    Args:
        settings: what to draw and how.
        scheduler: as `set_scheduler` takes it; the model's own by default.
    """

    settings: GenerationSettings
    scheduler: str | None = None


def read_request(
    *,
    prompt: str | None,
    negative_prompt: str | None,
    model: str,
    guidance: float | None,
    width: float | None,
    height: float | None,
    steps: float | None,
    scheduler: str | None,
    seed: float | None,
    interval: float | None,
    branch: float | None,
    skip_mode: str,
    forecast: str,
    guidance_reuse: bool,
    plan: str | None,
    between: str = "shallow",
    threshold: float | None = None,
) -> DrawingRequest:
    """What the fields of the form ask for.

    Args:
        prompt: what to draw.
        negative_prompt: what the image should not show; None or empty for nothing.
        model: the name of the model.
        guidance: the guidance scale, 0 to `MOST_GUIDANCE`; 1 or less is no guidance, None the one that is recommended
            for the model.
        width: in pixels, 8 to `LARGEST_SIDE`; None, for the height too, for the model's own size.
        height: in pixels, likewise.
        steps: denoising steps, 1 to `MOST_STEPS`.
        scheduler: as `set_scheduler` takes it; the model's own where it is None or empty.
        seed: from 0 to 2**53, up to which the numbers of a browser are whole.
        interval: `cache_interval`.
        branch: `cache_branch_id`.
        skip_mode: `skip_mode`.
        forecast: `forecast`.
        guidance_reuse: `guidance_reuse`.
        plan: the text of a plan, which takes the place of all settings of DeepCache; None or empty for none.
        between: `between`.
        threshold: `threshold`, which counts where `skip_mode` is `"adaptive"`; it must not be None there.

    Raises:
        ValueError: a field is empty, or its value out of range; the message names the field.
        TypeError: a value is of the wrong type.

    Example:
        >>> request = read_request(
        ...     prompt="a red circle", negative_prompt="", model="shapes", guidance=7.5, width=64, height=96,
        ...     steps=10, scheduler="", seed=0, interval=4, branch=0,
        ...     skip_mode="uniform", forecast="linear", guidance_reuse=False, plan=None,
        ... )
        >>> request.settings.cache.cache_interval, request.settings.guidance, request.settings.size
        (4, 7.5, (64, 96))
    """
    text = (prompt or "").strip()
    if not text:
        raise ValueError("the prompt is empty: write what to draw, such as: a red circle left of a blue square")
    negative_text = (negative_prompt or "").strip()
    for name, each in (("prompt", text), ("negative prompt", negative_text)):
        if len(each) > LONGEST_PROMPT:
            raise ValueError(f"the {name} has {len(each)} characters; at most {LONGEST_PROMPT} are taken")
    # What the page sends: DeepCacheConfig checks it.
    names: dict[str, Any] = {"skip_mode": skip_mode, "forecast": forecast, "between": between}
    cache = (
        DeepCacheConfig(
            cache_interval=_whole("interval", interval, 1, 1000),
            cache_branch_id=_whole("branch", branch, 0, 1000),
            guidance_reuse=guidance_reuse,
            threshold=_threshold(threshold) if skip_mode == "adaptive" else DeepCacheConfig.threshold,
            **names,
        )
        if not plan
        else DeepCacheConfig(plan=_read_plan(plan))
    )
    settings = GenerationSettings(
        prompts=(text,),
        model=model,
        negative_prompt=negative_text,
        steps=_whole("steps", steps, 1, MOST_STEPS),
        guidance=_guidance(guidance),
        size=_size(width, height),
        seed=_whole("seed", seed, 0, 2**53),
        cache=cache,
    )
    return DrawingRequest(settings, scheduler or None)


def _guidance(value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, (bool, str)) or not 0 <= value <= MOST_GUIDANCE:
        raise ValueError(f"guidance must be a number from 0 to {MOST_GUIDANCE}, got {value!r}")
    return float(value)


def _threshold(value: float | None) -> float:
    if value is None:
        raise ValueError("the threshold is empty: give a number above 0, such as 0.1")
    return value


def _size(width: float | None, height: float | None) -> tuple[int, int] | None:
    if width is None and height is None:
        return None
    if width is None or height is None:
        missing = "width" if width is None else "height"
        raise ValueError(f"the {missing} is empty: give both width and height, or neither for the model's own size")
    return _whole("width", width, 8, LARGEST_SIDE), _whole("height", height, 8, LARGEST_SIDE)


def _whole(name: str, value: float | None, least: int, most: int) -> int:
    if value is None or isinstance(value, (bool, str)) or value != value // 1 or not least <= value <= most:
        shown = "nothing" if value is None else f"{value!r}"
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {shown}")
    return int(value)


def _read_plan(text: str) -> Plan:
    if len(text) > LARGEST_PLAN:
        raise ValueError(f"the plan has more than {LARGEST_PLAN} characters: that is no plan of deepcache tune")
    try:
        return Plan.from_dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"the file is no plan of deepcache tune: {error}") from error
