"""Schedulers by name."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

__all__ = ["SCHEDULER_ALIASES", "set_scheduler"]

SCHEDULER_ALIASES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "dpm++-sde": "DPMSolverSDEScheduler",
    "dpm++-single": "DPMSolverSinglestepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "kdpm2-a": "KDPM2AncestralDiscreteScheduler",
    "lcm": "LCMScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "tcd": "TCDScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Short names of scheduler classes of diffusers."""

# Compatible, but not in diffusers' list of compatible schedulers.
_ALSO_COMPATIBLE = ("LCMScheduler", "TCDScheduler")


def set_scheduler(pipe: Any, name: str) -> None:
    """Replaces the scheduler of a pipeline with another one that is built from its configuration.

    Args:
        pipe: a diffusers pipeline.
        name: one of `SCHEDULER_ALIASES`, or a scheduler class of diffusers with or without the ending `Scheduler`; case
            is ignored.

    Raises:
        ValueError: there is no such scheduler, or it does not fit the pipeline.
        ImportError: the scheduler needs a package that is not installed.

    Example:
        >>> from DeepCache.models import load_pipeline
        >>> pipe = load_pipeline("shapes")
        >>> set_scheduler(pipe, "euler")
        >>> type(pipe.scheduler).__name__
        'EulerDiscreteScheduler'
    """
    import diffusers

    kind, own = type(pipe).__name__, type(pipe.scheduler).__name__
    if not hasattr(pipe.scheduler, "compatibles"):
        raise ValueError(f"the scheduler of a {kind}, a {own}, cannot be replaced, got {name!r}")
    fitting = {scheduler.__name__ for scheduler in pipe.scheduler.compatibles}
    if "DDIMScheduler" in fitting:
        fitting.update(_ALSO_COMPATIBLE)
    class_name = _class_name(name)
    if class_name not in fitting:
        short = [alias for alias, target in SCHEDULER_ALIASES.items() if target in fitting]
        raise ValueError(
            f"the scheduler {name!r} does not fit a {kind} with {own}. Use one of {', '.join(short or sorted(fitting))}"
        )
    # PNDM would start with twelve Runge-Kutta steps, which latent diffusion models are not made for.
    options = {"skip_prk_steps": True} if class_name == "PNDMScheduler" else {}
    pipe.scheduler = getattr(diffusers, class_name).from_config(pipe.scheduler.config, **options)


def _class_name(name: str) -> str:
    from diffusers import schedulers

    classes = [entry for entry in dir(schedulers) if entry.endswith("Scheduler")]
    names = {entry.lower(): entry for entry in classes}
    names |= {entry.lower().removesuffix("scheduler"): entry for entry in classes}
    names |= SCHEDULER_ALIASES
    key = name.strip().lower()
    found = names.get(key) or names.get(key.replace("_", "-").replace(" ", "-"))
    if found is None:
        aliases = {target: alias for alias, target in SCHEDULER_ALIASES.items()}
        near = dict.fromkeys(names[match] for match in get_close_matches(key, names, n=6, cutoff=0.5))
        shown = [aliases.get(match, match) for match in near][:3]
        hint = f"Did you mean {' or '.join(shown)}? " if shown else ""
        raise ValueError(
            f"there is no scheduler {name!r}. {hint}"
            f"Short names are {', '.join(SCHEDULER_ALIASES)}; class names of diffusers work too"
        )
    return found
