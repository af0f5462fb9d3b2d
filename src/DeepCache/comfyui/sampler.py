"""Properties of ComfyUI's sampler and guider that a run depends on."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.fingerprint import other_guidance, refuse
from DeepCache.engine.forecast import stiffness

__all__ = ["Sampler", "guidance_scale_of", "sampler_of"]

# Orders of samplers that extrapolate past predictions, by a part of their names; others have order 1.
_ORDERS = {"_2m": 2, "_3m": 3, "multistep": 2, "unipc": 3, "deis": 3, "ipndm": 4, "lms": 4}

# Samplers that evaluate the model more than once per step, or a variable number of times.
_SEVERAL_EVALUATIONS = ("heun", "dpm_2", "_2s", "dpmpp_sde", "seeds", "pece", "dpm_fast", "dpm_adaptive")
# A sampler whose name matches but that evaluates the model once.
_ONE_EVALUATION = "2m_sde_heun"


@dataclass(frozen=True)
class Sampler:
    """Properties of a sampler that a run depends on.

    Args:
        stiffness: how strongly the run amplifies an error, see `DeepCache.engine.forecast.stiffness`.
        response: initial estimate of how the prediction responds to its input, see `PredictionForecast`.
        steps: the number of evaluations, if a plan or an adaptive schedule needs it.
        highest_sigma: DeepCache is used at this noise level and below; None for all.
        lowest_sigma: DeepCache is used above this noise level.
        splits_batches: whether the model may run on parts of a batch, so that its rows cannot be identified.
    """

    stiffness: float = 0.0
    response: float = 1.0
    steps: int | None = None
    highest_sigma: float | None = None
    lowest_sigma: float = 0.0
    splits_batches: bool = False

    def allows(self, sigma: torch.Tensor) -> bool:
        """Whether DeepCache is used at a noise level. Without limits nothing is read from the device."""
        if self.highest_sigma is None and not self.lowest_sigma:
            return True
        level = float(sigma.flatten()[0])
        return self.lowest_sigma < level and (self.highest_sigma is None or level <= self.highest_sigma)


def guidance_scale_of(guider: Any) -> float | None:
    """The guidance scale of a guider: the larger one of two, None without one."""
    scales = [getattr(guider, name, None) for name in ("cfg", "cfg1", "cfg2")]
    return max((scale for scale in scales if scale is not None), default=None)


def sampler_of(
    guider: Any, sampler: Any, sigmas: torch.Tensor, config: DeepCacheConfig, start: float, end: float
) -> Sampler:
    """The properties of the sampler of a run.

    Args:
        guider: the guider of the run.
        sampler: its sampler.
        sigmas: the noise levels of the steps and the final one.
        config: the settings.
        start: the part of the run at which DeepCache starts, 0 to 1.
        end: the part at which it ends.

    Raises:
        ValueError: the plan is for another number of steps or another guidance scale, or the number of evaluations
            cannot be determined.
    """
    name, steps, guidance = _name_of(sampler), len(sigmas) - 1, guidance_scale_of(guider)
    counted = config.plan is not None or config.skip_mode == "adaptive"
    several = any(part in name for part in _SEVERAL_EVALUATIONS) and _ONE_EVALUATION not in name
    if counted and several:
        raise ValueError(
            f"DeepCache: a plan or adaptive_threshold needs a sampler with one evaluation per step, and {name} has "
            "several. Use another sampler, or set neither"
        )
    if config.plan is not None:
        planned = len(config.plan.schedule.each)
        if planned != steps:
            raise ValueError(f"DeepCache: the plan is for {planned} steps, but the sampler runs {steps}")
        refuse(other_guidance(config.plan, guidance))
    sampling = guider.model_patcher.get_model_object("model_sampling")
    model_type = getattr(guider.model_patcher.model, "model_type", None)
    order = next((order for part, order in _ORDERS.items() if part in name), 1)
    return Sampler(
        stiffness(guidance, SimpleNamespace(config={"solver_order": order}), steps),
        # Predicted noise changes with the input.
        response=1.0 if getattr(model_type, "name", "EPS") == "EPS" else 0.0,
        steps=steps if counted else None,
        highest_sigma=float(sampling.percent_to_sigma(start)) if start > 0 else None,
        lowest_sigma=float(sampling.percent_to_sigma(end)) if end < 1 else 0.0,
        splits_batches="model_function_wrapper" in guider.model_options,
    )


def _name_of(sampler: Any) -> str:
    name: str = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    return name.removeprefix("sample_")
