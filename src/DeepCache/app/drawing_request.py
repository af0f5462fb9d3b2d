"""What a visitor asks for: the fields of the form, read and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass

from DeepCache.config import DeepCacheConfig
from DeepCache.generation import GenerationSettings
from DeepCache.plan import Plan

__all__ = ["LARGEST_PLAN", "LONGEST_PROMPT", "MOST_STEPS", "DrawingRequest", "read_request"]

MOST_STEPS = 250
"""The steps that a visitor may ask for: one who asks for all that a scheduler has keeps the others waiting."""
LONGEST_PROMPT = 2000
"""The characters of a prompt, far more than a text encoder reads."""


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
    model: str,
    steps: float | None,
    scheduler: str | None,
    seed: float | None,
    interval: float | None,
    branch: float | None,
    skip_mode: str,
    forecast: str,
    guidance_reuse: bool,
    plan: str | None,
) -> DrawingRequest:
    """What the fields of the form ask for.

    Args:
        prompt: what to draw.
        model: the name of the model.
        steps: denoising steps, 1 to `MOST_STEPS`.
        scheduler: as `set_scheduler` takes it; the model's own where it is None or empty.
        seed: from 0 to 2**53, up to which the numbers of a browser are whole.
        interval: `cache_interval`.
        branch: `cache_branch_id`.
        skip_mode: `skip_mode`.
        forecast: `forecast`.
        guidance_reuse: `guidance_reuse`.
        plan: the text of a plan, which takes the place of the five before it; None or empty for none.

    Raises:
        ValueError: a field is empty, or its value out of range; the message names the field.
        TypeError: a value is of the wrong type.

    Example:
        >>> request = read_request(
        ...     prompt="a red circle", model="shapes", steps=10, scheduler="", seed=0, interval=4, branch=0,
        ...     skip_mode="uniform", forecast="linear", guidance_reuse=False, plan=None,
        ... )
        >>> request.settings.cache.cache_interval
        4
    """
    text = (prompt or "").strip()
    if not text:
        raise ValueError("the prompt is empty: write what to draw, such as: a red circle left of a blue square")
    if len(text) > LONGEST_PROMPT:
        raise ValueError(f"the prompt has {len(text)} characters; at most {LONGEST_PROMPT} are taken")
    cache = (
        DeepCacheConfig(
            cache_interval=_whole("interval", interval, 1, 1000),
            cache_branch_id=_whole("branch", branch, 0, 1000),
            skip_mode=skip_mode,
            forecast=forecast,
            guidance_reuse=guidance_reuse,
        )
        if not plan
        else DeepCacheConfig(plan=_read_plan(plan))
    )
    settings = GenerationSettings(
        prompts=(text,),
        model=model,
        steps=_whole("steps", steps, 1, MOST_STEPS),
        seed=_whole("seed", seed, 0, 2**53),
        cache=cache,
    )
    return DrawingRequest(settings, scheduler or None)


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
