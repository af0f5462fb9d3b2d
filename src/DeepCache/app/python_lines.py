"""Settings as a program or a command to copy."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path

from DeepCache.config import DeepCacheConfig
from DeepCache.models.architectures import ARCHITECTURES
from DeepCache.models.registry import MODELS, named_model

__all__ = ["PLAN_FILE", "command_line", "python_lines"]

PLAN_FILE = "plan.json"
"""The file that a plan is read from."""

_DEFAULT = DeepCacheConfig()


def python_lines(
    model: str,
    cache: DeepCacheConfig,
    steps: int,
    scheduler: str | None,
    guidance: float | None = None,
    seed: int | None = None,
    prompt: str | None = None,
) -> str:
    """A whole program that draws a picture with these settings.

    Args:
        model: as `load_pipeline` takes it. A model of the hub is loaded onto a GPU in half precision.
        cache: the settings of DeepCache; a plan is read from the file `plan.json`.
        steps: denoising steps.
        scheduler: as `set_scheduler` takes it; None for the model's own.
        guidance: the guidance scale; the one recommended for the model by default.
        seed: the seed; another picture each time by default.
        prompt: what to draw; an example that suits the model by default.

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
    from_hub = _is_hub_id(model)
    models = [*([] if from_hub else ["load_pipeline"]), *([] if scheduler is None else ["set_scheduler"])]
    libraries = [
        *(["import torch"] if from_hub or seed is not None else []),
        *(["from diffusers import DiffusionPipeline"] if from_hub else []),
    ]
    settings, imports = _settings(cache)
    ours = [
        "from DeepCache import DeepCacheConfig, apply_deepcache",
        *([f"from DeepCache.models import {', '.join(models)}"] if models else []),
        *imports,
    ]
    named = named_model(model)
    scale = guidance if guidance is not None or named is None else named.guidance
    arguments = [
        _literal(_example(model) if prompt is None else prompt),
        f"num_inference_steps={steps}",
        *([] if scale is None else [f"guidance_scale={scale}"]),
        *([] if seed is None else [f'generator=torch.Generator("cpu").manual_seed({seed})']),
    ]
    lines = [
        *([*libraries, ""] if libraries else []),
        *ours,
        "",
        f'pipe = DiffusionPipeline.from_pretrained({_literal(model)}, torch_dtype=torch.float16).to("cuda")'
        if from_hub
        else f"pipe = load_pipeline({_literal(model)})",
        *([] if scheduler is None else [f"set_scheduler(pipe, {_literal(scheduler)})"]),
        f"apply_deepcache(pipe, {settings})",
        "image = pipe(",
        *(f"    {argument}," for argument in arguments),
        ").images[0]",
        'image.save("picture.png")',
    ]
    return "\n".join(lines) + "\n"


def command_line(
    model: str,
    cache: DeepCacheConfig,
    steps: int,
    scheduler: str | None,
    guidance: float | None = None,
    seed: int | None = None,
    prompt: str | None = None,
) -> str:
    """The same as a line of `deepcache generate`, quoted for a shell of Unix.

    Args:
        model: as for `python_lines`.
        cache: as for `python_lines`.
        steps: as for `python_lines`.
        scheduler: as for `python_lines`.
        guidance: as for `python_lines`.
        seed: the seed; 0 by default, as for the command.
        prompt: as for `python_lines`.

    Raises:
        ValueError: the settings hold a schedule, which the command does not take.

    Example:
        >>> command_line("shapes", DeepCacheConfig(forecast="none"), 50, "ddim", prompt="it's red")
        'deepcache generate \\'it\\'"\\'"\\'s red\\' --model shapes --scheduler ddim --steps 50 --forecast none'
    """
    if cache.schedule is not None and cache.plan is None:
        raise ValueError("`deepcache generate` takes no schedule of its own; take the lines of Python")
    text = _example(model) if prompt is None else prompt
    # One that begins like an option comes last, after the end of the options.
    first, last = ([], ["--", text]) if text.startswith("-") else ([text], [])
    options: list[object] = ["--model", model]
    options += [] if scheduler is None else ["--scheduler", scheduler]
    options += ["--steps", steps]
    options += [] if guidance is None else ["--guidance", guidance]
    options += [] if seed is None else ["--seed", seed]
    if cache.plan is not None:
        options += ["--plan", PLAN_FILE, *(["--force-plan"] if cache.force_plan else [])]
    else:
        given = {
            "--interval": (cache.cache_interval, _DEFAULT.cache_interval),
            "--branch": (cache.cache_branch_id, _DEFAULT.cache_branch_id),
            "--skip-mode": (cache.skip_mode, _DEFAULT.skip_mode),
            "--forecast": (cache.forecast, _DEFAULT.forecast),
        }
        for name, (value, default) in given.items():
            options += [name, value] if value != default else []
        options += ["--guidance-reuse"] if cache.guidance_reuse else []
    options += ["--compile", cache.compile] if cache.compile != _DEFAULT.compile else []
    return shlex.join(["deepcache", "generate", *first, *map(str, options), *last])


def _is_hub_id(model: str) -> bool:
    """Whether `load_pipeline` would look for it on the hub."""
    looks_like_a_path = model.startswith((".", "~", "/"))
    here = model in MODELS or model in ARCHITECTURES or Path(model).is_dir()
    return model.count("/") == 1 and not looks_like_a_path and not here


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


def _literal(value: object) -> str:
    """The value as Python has it, text in double quotes where it holds none."""
    shown = repr(value)
    if isinstance(value, str) and shown.startswith("'") and '"' not in shown:
        return f'"{shown[1:-1]}"'
    return shown
