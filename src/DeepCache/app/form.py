"""Reads and checks the fields of the form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from DeepCache.config import DeepCacheConfig
from DeepCache.generation import GenerationSettings
from DeepCache.plan import Plan

__all__ = ["MAX_GUIDANCE", "read_settings"]

# A visitor with more steps, or a larger image, would keep the others waiting.
MAX_STEPS = 250
MAX_SIDE = 4096
MAX_GUIDANCE = 20
# Characters: far more than a text encoder reads, or than a plan of `MAX_STEPS` steps has.
MAX_PROMPT = 2000
MAX_PLAN = 1_000_000


def read_settings(form: Mapping[str, Any]) -> GenerationSettings:
    """The settings that a visitor asks for.

    Args:
        form: the values of the fields by name. An empty `guidance`, `scheduler`, or `width` and `height` is the default
            of the model. A `plan`, the text of its file, replaces the other settings of DeepCache.

    Raises:
        ValueError: a field is empty or its value out of range; the message names the field.
        TypeError: a value has the wrong type.

    Example:
        >>> settings = read_settings({
        ...     "prompt": "a red circle", "negative_prompt": "", "model": "shapes", "guidance": 7.5, "width": 64,
        ...     "height": 96, "steps": 10, "scheduler": "", "seed": 0, "interval": 4, "branch": 0, "between": "shallow",
        ...     "skip_mode": "uniform", "threshold": 0.1, "forecast": "linear", "guidance_reuse": False, "plan": None,
        ... })
        >>> settings.cache.cache_interval, settings.guidance, settings.size
        (4, 7.5, (64, 96))
    """
    prompt, negative_prompt = ((form[name] or "").strip() for name in ("prompt", "negative_prompt"))
    if not prompt:
        raise ValueError("the prompt is empty: describe an image, such as: a red circle left of a blue square")
    for name, text in (("prompt", prompt), ("negative prompt", negative_prompt)):
        if len(text) > MAX_PROMPT:
            raise ValueError(f"the {name} must have at most {MAX_PROMPT} characters, got {len(text)}")
    guidance = form["guidance"]
    if guidance is not None and (isinstance(guidance, (bool, str)) or not 0 <= guidance <= MAX_GUIDANCE):
        raise ValueError(f"guidance must be a number between 0 and {MAX_GUIDANCE}, got {guidance!r}")
    return GenerationSettings(
        prompts=(prompt,),
        model=form["model"],
        negative_prompt=negative_prompt,
        steps=_whole(form, "steps", 1, MAX_STEPS),
        guidance=None if guidance is None else float(guidance),
        size=_size(form),
        # Browsers represent whole numbers exactly up to this one.
        seed=_whole(form, "seed", 0, 2**53),
        cache=_cache(form),
        scheduler=form["scheduler"] or None,
    )


def _cache(form: Mapping[str, Any]) -> DeepCacheConfig:
    if form["plan"]:
        return DeepCacheConfig(plan=_plan(form["plan"]))
    adaptive = form["skip_mode"] == "adaptive"
    if adaptive and form["threshold"] is None:
        raise ValueError("the threshold is empty: give a number above 0, such as 0.1")
    return DeepCacheConfig(
        cache_interval=_whole(form, "interval", 1, 1000),
        cache_branch_id=_whole(form, "branch", 0, 1000),
        threshold=form["threshold"] if adaptive else DeepCacheConfig.threshold,
        **{name: form[name] for name in ("skip_mode", "forecast", "between", "guidance_reuse")},
    )


def _size(form: Mapping[str, Any]) -> tuple[int, int] | None:
    empty = [name for name in ("width", "height") if form[name] is None]
    if len(empty) == 2:
        return None
    if empty:
        raise ValueError(f"the {empty[0]} is empty: give both width and height, or neither for the model's own size")
    return _whole(form, "width", 8, MAX_SIDE), _whole(form, "height", 8, MAX_SIDE)


def _whole(form: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = form[name]
    if value is None or isinstance(value, (bool, str)) or value != value // 1 or not least <= value <= most:
        shown = "nothing" if value is None else f"{value!r}"
        raise ValueError(f"{name} must be a whole number between {least} and {most}, got {shown}")
    return int(value)


def _plan(text: str) -> Plan:
    if len(text) > MAX_PLAN:
        raise ValueError(f"the file is not a plan of deepcache tune: it has more than {MAX_PLAN} characters")
    try:
        return Plan.from_dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"the file is not a plan of deepcache tune: {error}") from error
