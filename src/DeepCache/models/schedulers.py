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
"""Short names, and the classes of diffusers that they stand for."""

# Diffusers leaves them out of the list of those that can take each other's place, though they can.
_ALSO_COMPATIBLE = ("LCMScheduler", "TCDScheduler")


def set_scheduler(pipe: Any, name: str) -> None:
    """Gives the pipeline the scheduler of that name, built from its own scheduler's configuration.

    Args:
        pipe: a diffusers pipeline.
        name: one of `SCHEDULER_ALIASES`, or the name of a scheduler class of diffusers with or
            without the ending `Scheduler`; capitals make no difference.

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

    if not hasattr(pipe.scheduler, "compatibles"):
        raise ValueError(
            f"a {type(pipe).__name__} keeps its own {type(pipe.scheduler).__name__}: "
            f"the scheduler {name!r} does not fit it"
        )
    fitting = {scheduler.__name__ for scheduler in pipe.scheduler.compatibles}
    if "DDIMScheduler" in fitting:
        fitting.update(_ALSO_COMPATIBLE)
    class_name = _class_name(name)
    if class_name not in fitting:
        short = [alias for alias, target in SCHEDULER_ALIASES.items() if target in fitting]
        raise ValueError(
            f"the scheduler {name!r} does not fit a {type(pipe).__name__} with "
            f"{type(pipe.scheduler).__name__}; these do: {', '.join(short or sorted(fitting))}"
        )
    # Without this, PNDM begins with twelve Runge-Kutta steps, which no latent diffusion model wants.
    options = {"skip_prk_steps": True} if class_name == "PNDMScheduler" else {}
    pipe.scheduler = getattr(diffusers, class_name).from_config(pipe.scheduler.config, **options)


def _class_name(name: str) -> str:
    """The class that a name stands for."""
    from diffusers import schedulers

    classes = [entry for entry in dir(schedulers) if entry.endswith("Scheduler")]
    names = {entry.lower(): entry for entry in classes}
    names |= {entry.lower().removesuffix("scheduler"): entry for entry in classes}
    names |= SCHEDULER_ALIASES
    wanted = name.strip().lower()
    found = names.get(wanted) or names.get(wanted.replace("_", "-").replace(" ", "-"))
    if found is None:
        near = [names[match] for match in get_close_matches(wanted, names, n=6, cutoff=0.5)]
        shown = [_short_name(match) for match in dict.fromkeys(near)][:3]
        hint = f"Did you mean {' or '.join(shown)}? " if shown else ""
        raise ValueError(
            f"there is no scheduler {name!r}. {hint}"
            f"Short names are {', '.join(SCHEDULER_ALIASES)}; class names of diffusers work too"
        )
    return found


def _short_name(class_name: str) -> str:
    """The alias of a class, or its own name where it has none."""
    return next((alias for alias, target in SCHEDULER_ALIASES.items() if target == class_name), class_name)
