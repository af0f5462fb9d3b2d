"""Settings as a program or a command to copy."""

from __future__ import annotations

import shlex
from dataclasses import fields

from DeepCache.config import DeepCacheConfig
from DeepCache.generation import GenerationSettings
from DeepCache.models.registry import MODELS, named_model

__all__ = ["PLAN_FILE", "command_line", "example_prompt", "python_lines"]

PLAN_FILE = "plan.json"
"""The file that a plan is read from."""

_DEFAULT = DeepCacheConfig()
_NO_CACHING = DeepCacheConfig(cache_interval=1)


def python_lines(settings: GenerationSettings) -> str:
    """A program that generates the image of the first prompt. A plan is read from the file `plan.json`.

    Example:
        >>> print(python_lines(GenerationSettings(("a red circle",), cache=DeepCacheConfig(5), scheduler="ddim")))
        import torch
        <BLANKLINE>
        from DeepCache import DeepCacheConfig, apply_deepcache
        from DeepCache.models import load_pipeline, set_scheduler
        <BLANKLINE>
        pipe = load_pipeline("shapes")
        set_scheduler(pipe, "ddim")
        apply_deepcache(pipe, DeepCacheConfig(cache_interval=5))
        image = pipe(
            "a red circle",
            num_inference_steps=50,
            guidance_scale=2.0,
            generator=torch.Generator("cpu").manual_seed(0),
        ).images[0]
        image.save("image.png")
        <BLANKLINE>
    """
    cached, scheduler, size = settings.cache != _NO_CACHING, settings.scheduler, settings.size
    cache, imports = _config(settings.cache)
    guidance = _recommended(settings.model) if settings.guidance is None else settings.guidance
    arguments = [
        _literal(settings.prompts[0]),
        *([f"negative_prompt={_literal(settings.negative_prompt)}"] if settings.negative_prompt else []),
        *([] if size is None else [f"width={size[0]}", f"height={size[1]}"]),
        f"num_inference_steps={settings.steps}",
        *([] if guidance is None else [f"guidance_scale={guidance}"]),
        f'generator=torch.Generator("cpu").manual_seed({settings.seed})',
    ]
    lines = [
        "import torch",
        "",
        *(["from DeepCache import DeepCacheConfig, apply_deepcache"] if cached else []),
        f"from DeepCache.models import load_pipeline{'' if scheduler is None else ', set_scheduler'}",
        *imports,
        "",
        f"pipe = load_pipeline({_literal(settings.model)})",
        *([] if scheduler is None else [f"set_scheduler(pipe, {_literal(scheduler)})"]),
        *([f"apply_deepcache(pipe, {cache})"] if cached else []),
        "image = pipe(",
        *(f"    {argument}," for argument in arguments),
        ").images[0]",
        'image.save("image.png")',
    ]
    return "\n".join(lines) + "\n"


def command_line(settings: GenerationSettings) -> str:
    """A command that generates the image of the first prompt, quoted for a Unix shell.

    Raises:
        ValueError: the settings have an explicit schedule, for which the command has no option.

    Example:
        >>> cache = DeepCacheConfig(forecast="none")
        >>> print(command_line(GenerationSettings(("a dog",), model="sd15-tiny", cache=cache)))
        deepcache generate 'a dog' --model sd15-tiny --steps 50 --forecast none
    """
    cache, guidance = settings.cache, settings.guidance
    if cache.schedule is not None and cache.plan is None:
        raise ValueError("`deepcache generate` has no option for an explicit schedule. Use Python instead")
    options: list[object] = ["--model", settings.model]
    options += [] if settings.scheduler is None else ["--scheduler", settings.scheduler]
    options += ["--steps", settings.steps]
    options += [] if guidance in (None, _recommended(settings.model)) else ["--guidance", f"{guidance:g}"]
    if cache.plan is not None:
        options += ["--plan", PLAN_FILE, *(["--force-plan"] if cache.force_plan else [])]
    else:
        names = {
            "--interval": "cache_interval",
            "--branch": "cache_branch_id",
            "--skip-mode": "skip_mode",
            **({"--threshold": "threshold"} if cache.skip_mode == "adaptive" else {}),
            "--between": "between",
            "--forecast": "forecast",
        }
        for option, name in names.items():
            value = getattr(cache, name)
            options += [option, value] if value != getattr(_DEFAULT, name) or name == "threshold" else []
        options += ["--guidance-reuse"] if cache.guidance_reuse else []
    options += ["--compile", cache.compile] if cache.compile != _DEFAULT.compile else []
    return shlex.join(["deepcache", "generate", settings.prompts[0], *map(str, options)])


def example_prompt(model: str) -> str:
    """A prompt that suits the model."""
    return "a red circle left of a blue square" if model in MODELS else "a photo of an astronaut on a moon"


def _config(cache: DeepCacheConfig) -> tuple[str, list[str]]:
    """The settings of DeepCache as an expression, and the imports that it needs."""
    names = [field.name for field in fields(cache)]
    values = {name: getattr(cache, name) for name in names if getattr(cache, name) != getattr(_DEFAULT, name)}
    if cache.plan is not None:
        # The plan contains the others.
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


def _recommended(model: str) -> float | None:
    named = named_model(model)
    return None if named is None else named.guidance


def _literal(value: object) -> str:
    """The value as Python source, strings in double quotes if possible."""
    shown = repr(value)
    if isinstance(value, str) and shown.startswith("'") and '"' not in shown:
        return f'"{shown[1:-1]}"'
    return shown
