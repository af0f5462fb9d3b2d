"""What a schedule can cost at least, known before any image is generated."""

from __future__ import annotations

from typing import Any

import torch

from DeepCache.engine.attention import may_write
from DeepCache.engine.cost import Costs, capture_unet_call, count_costs
from DeepCache.engine.layouts import SkipBranch
from DeepCache.tune.search import Goal
from DeepCache.tune.settings import TuningSettings
from DeepCache.tune.starts import kinds_of_steps

__all__ = ["check_goal"]

# With three calls there is nothing to choose.
_FEWEST_CALLS = 4


def check_goal(pipe: Any, settings: TuningSettings, branches: list[SkipBranch]) -> Costs:
    """Counts what the steps of a run cost, and refuses a goal that no schedule can meet. Nothing is generated: the
    pipeline runs up to its first U-Net call.

    Args:
        pipe: the pipeline.
        settings: what to tune for and on.
        branches: the skip branches that shallow steps may use.

    Returns:
        The costs of a full step, and of a shallow one at each branch.

    Raises:
        ValueError: the run is too short, or the goal is below the cost of the cheapest schedule.
    """
    call: dict[str, Any] = {
        "prompt": list(settings.prompts[:1]),
        "num_inference_steps": settings.steps,
        "generator": torch.Generator("cpu").manual_seed(settings.seed),
    }
    lowest = settings.scales[0]
    if lowest is not None:
        call["guidance_scale"] = lowest
    args, kwargs = capture_unet_call(pipe, pipe.unet, **call)
    # The pipeline has put its attention processors on by then.
    reads_attention = any(may_write(layer) for layer in pipe.unet.modules() if hasattr(layer, "processor"))
    calls = len(pipe.scheduler.timesteps)
    if calls < _FEWEST_CALLS:
        raise ValueError(f"a run must have {_FEWEST_CALLS} U-Net calls or more, got {calls}. Take more steps.")
    _check(settings.goal, calls, 0.0)
    costs = count_costs(pipe.unet, args, kwargs, branches)
    if reads_attention:
        # No step can be skipped then.
        kinds = [step for branch in branches for step in kinds_of_steps(branch.number, True, ()).values()]
        _check(settings.goal, calls, min(step.cost(costs) for step in kinds))
    return costs


def _check(goal: Goal, calls: int, between: float) -> None:
    """Refuses a cost below that of one full step and the rest as cheap as they can be."""
    least = (1 + (calls - 1) * between) / calls
    if goal.cost is not None and goal.cost < least:
        raise ValueError(
            f"no schedule of {calls} steps meets the goal {goal}: the cheapest, with one full step, costs {least:.3f}, "
            f"a speed-up of {1 / least:.2f}. Ask for a higher cost or a lower speed-up, or for more steps."
        )
