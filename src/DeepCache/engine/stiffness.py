"""How strongly a run answers to an error of a forecast."""

from __future__ import annotations

from typing import Any

__all__ = ["stiffness"]

# What is assumed where a pipeline keeps its guidance scale to itself, and a loop of one's own has none to ask for.
_USUAL_GUIDANCE = 7.5
# And where nothing tells how many steps a run has.
_USUAL_STEPS = 25


def stiffness(guidance: float | None, scheduler: Any, steps: int | None) -> float:
    """How much of an error of the prediction one step carries on, up to a factor that belongs to the model.

    A step moves the latents by its share of the run times the prediction, and guidance multiplies the difference of the
    two halves. A solver of a higher order continues past predictions itself, and their errors with them: the weights of
    two-step Adams-Bashforth, 3/2 and -1/2, add up to 2 in size, those of Euler's rule to 1.

    Args:
        guidance: the guidance scale, 1 where nothing is guided; None, where that is not known, is taken for 7.5.
        scheduler: a scheduler of diffusers, of which the `solver_order` counts, or anything.
        steps: how many steps the run has; None is taken for 25.
    """
    order: int = getattr(scheduler, "config", {}).get("solver_order", 1)
    scale = _USUAL_GUIDANCE if guidance is None else max(guidance, 1.0)
    return scale * (1 + order) / 2 / (steps or _USUAL_STEPS)
