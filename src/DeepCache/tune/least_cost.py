"""What a schedule can cost at least, known before any image is generated."""

from __future__ import annotations

from typing import Any

import torch

from DeepCache.engine.cost import Costs, capture_unet_call, count_costs
from DeepCache.engine.layouts import SkipBranch
from DeepCache.tune.settings import TuningSettings

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
    calls = len(pipe.scheduler.timesteps)
    if calls < _FEWEST_CALLS:
        raise ValueError(f"a run of {calls} U-Net calls is too short to tune")
    least = 1 / calls
    if settings.goal.cost is not None and settings.goal.cost < least:
        raise ValueError(
            f"no schedule of {calls} steps meets the goal {settings.goal}: the cheapest, with one full step, costs "
            f"{least:.3f}"
        )
    return count_costs(pipe.unet, args, kwargs, branches)
