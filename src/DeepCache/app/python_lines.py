"""Settings as a program or a command to copy."""

from __future__ import annotations

import shlex
from dataclasses import fields

from DeepCache.config import DeepCacheConfig
from DeepCache.models.registry import MODELS, named_model

__all__ = ["PLAN_FILE", "command_line", "python_lines"]

PLAN_FILE = "plan.json"
"""The file that a plan is read from."""

_DEFAULT = DeepCacheConfig()


def python_lines(
    model: str,
    cache: DeepCacheConfig | None,
    steps: int,
    scheduler: str | None,
    seed: int | None = None,
    prompt: str | None = None,
    *,
    negative_prompt: str = "",
    guidance: float | None = None,
    size: tuple[int, int] | None = None,
) -> str:
    """A whole program that generates an image with these settings.

    Args:
        model: as `load_pipeline` takes it.
        cache: the settings of DeepCache; a plan is read from the file `plan.json`. None leaves DeepCache out.
        steps: denoising steps.
        scheduler: as `set_scheduler` takes it; None for the model's own.
        seed: the seed; another picture each time by default.
        prompt: what to draw; an example that suits the model by default.
        negative_prompt: what the image should not show.
        guidance: the guidance scale; the one recommended for the model by default.
        size: width and height in pixels; the model's own by default.

    Returns:
        The lines of Python.

    Example:
        >>> print(python_lines("shapes", DeepCacheConfig(cache_interval=5), 50, "ddim", seed=0))
        import torch
        <BLANKLINE>
        from DeepCache import DeepCacheConfig, apply_deepcache
        from DeepCache.models import load_pipeline, set_scheduler
        <BLANKLINE>
        pipe = load_pipeline("shapes")
        set_scheduler(pipe, "ddim")
        apply_deepcache(pipe, DeepCacheConfig(cache_interval=5))
        image = pipe(
            "a red circle left of a blue square",
            num_inference_steps=50,
            guidance_scale=2.0,
            generator=torch.Generator("cpu").manual_seed(0),
        ).images[0]
        image.save("picture.png")
        <BLANKLINE>
    """
    settings, imports = ("", []) if cache is None else _settings(cache)
    if guidance is None:
        guidance = _recommended(model)
    arguments = [
        _literal(_example(model) if prompt is None else prompt),
        *([f"negative_prompt={_literal(negative_prompt)}"] if negative_prompt else []),
        *([] if size is None else [f"width={size[0]}", f"height={size[1]}"]),
        f"num_inference_steps={steps}",
        *([] if guidance is None else [f"guidance_scale={guidance}"]),
        *([] if seed is None else [f'generator=torch.Generator("cpu").manual_seed({seed})']),
    ]
    lines = [
        *([] if seed is None else ["import torch", ""]),
        *([] if cache is None else ["from DeepCache import DeepCacheConfig, apply_deepcache"]),
        f"from DeepCache.models import load_pipeline{'' if scheduler is None else ', set_scheduler'}",
        *imports,
        "",
        f"pipe = load_pipeline({_literal(model)})",
        *([] if scheduler is None else [f"set_scheduler(pipe, {_literal(scheduler)})"]),
        *([] if cache is None else [f"apply_deepcache(pipe, {settings})"]),
        "image = pipe(",
        *(f"    {argument}," for argument in arguments),
        ").images[0]",
        'image.save("picture.png")',
    ]
    return "\n".join(lines) + "\n"


def command_line(
    model: str, cache: DeepCacheConfig | None, steps: int, scheduler: str | None, *, guidance: float | None = None
) -> str:
    """The settings as a line of `deepcache generate` with an example of a prompt, quoted for a shell of Unix.

    Args:
        model: as for `python_lines`.
        cache: as for `python_lines`; None is the interval 1, which caches nothing.
        steps: as for `python_lines`.
        scheduler: as for `python_lines`.
        guidance: as for `python_lines`.

    Returns:
        The line, without a line break.

    Raises:
        ValueError: the settings hold a schedule, which the command does not take.

    Example:
        >>> print(command_line("sd15-tiny", DeepCacheConfig(forecast="none"), 50, None))
        deepcache generate 'a photo of an astronaut on a moon' --model sd15-tiny --steps 50 --forecast none
    """
    if cache is None:
        cache = DeepCacheConfig(cache_interval=1)
    if cache.schedule is not None and cache.plan is None:
        raise ValueError("`deepcache generate` takes no schedule of its own; take the lines of Python")
    options: list[object] = ["--model", model]
    options += [] if scheduler is None else ["--scheduler", scheduler]
    options += ["--steps", steps]
    options += [] if guidance in (None, _recommended(model)) else ["--guidance", f"{guidance:g}"]
    if cache.plan is not None:
        options += ["--plan", PLAN_FILE, *(["--force-plan"] if cache.force_plan else [])]
    else:
        given = {
            "--interval": (cache.cache_interval, _DEFAULT.cache_interval),
            "--branch": (cache.cache_branch_id, _DEFAULT.cache_branch_id),
            "--skip-mode": (cache.skip_mode, _DEFAULT.skip_mode),
            "--threshold": (cache.threshold if cache.skip_mode == "adaptive" else None, None),
            "--between": (cache.between, _DEFAULT.between),
            "--forecast": (cache.forecast, _DEFAULT.forecast),
        }
        for name, (value, default) in given.items():
            options += [name, value] if value != default else []
        options += ["--guidance-reuse"] if cache.guidance_reuse else []
    options += ["--compile", cache.compile] if cache.compile != _DEFAULT.compile else []
    return shlex.join(["deepcache", "generate", _example(model), *map(str, options)])


def _settings(cache: DeepCacheConfig) -> tuple[str, list[str]]:
    """The settings as an expression, and what it needs imported besides."""
    names = [field.name for field in fields(cache)]
    values = {name: getattr(cache, name) for name in names if getattr(cache, name) != getattr(_DEFAULT, name)}
    if cache.plan is not None:
        # It says these itself.
        values = {name: values[name] for name in ("force_plan", "compile") if name in values}
        if not values:
            return f'DeepCacheConfig.from_file("{PLAN_FILE}")', []
        others = "".join(f", {name}={_literal(value)}" for name, value in values.items())
        return f'DeepCacheConfig(plan=Plan.from_file("{PLAN_FILE}"){others})', ["from DeepCache.plan import Plan"]
    shown = [
        f"{name}=schedule_from_dict({value.to_dict()!r})" if name == "schedule" else f"{name}={_literal(value)}"
        for name, value in values.items()
    ]
    imports = ["from DeepCache.schedule import schedule_from_dict"] if cache.schedule is not None else []
    return f"DeepCacheConfig({', '.join(shown)})", imports


def _example(model: str) -> str:
    return "a red circle left of a blue square" if model in MODELS else "a photo of an astronaut on a moon"


def _recommended(model: str) -> float | None:
    named = named_model(model)
    return None if named is None else named.guidance


def _literal(value: object) -> str:
    """The value as Python has it, text in double quotes where it holds none."""
    shown = repr(value)
    if isinstance(value, str) and shown.startswith("'") and '"' not in shown:
        return f'"{shown[1:-1]}"'
    return shown
