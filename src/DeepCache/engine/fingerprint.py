"""Distinguishes models, settings of schedulers and guidance scales: what a plan was tuned on."""

from __future__ import annotations

import hashlib
import math
import warnings
from numbers import Real
from typing import Any

from torch import nn

from DeepCache.engine.offload import offloaded_to_disk
from DeepCache.plan import Plan

_SAMPLED_WEIGHTS = 64
# Rounding to bfloat16 changes a weight by a 256th at most; fine-tuning changes it by more.
_TOLERANCE = 2**-7
# How far beyond the guidance scales that it was tuned at a plan holds, as a share of them.
_GUIDANCE_TOLERANCE = 0.1


def fingerprint(unet: nn.Module) -> dict[str, Any]:
    """Identifies a U-Net regardless of its dtype and device, by its class, its structure and some of its weights.

    Adapters beside the weights (LoRA of PEFT) are ignored: a plan holds with a LoRA as without. Those that are fused
    into the weights change them, see `other_model`.

    Returns:
        `unet`, the class; `structure`, a hash of the names and shapes of all weights; `weights`, a few of them, or an
        empty list if they cannot be read (offloaded sequentially or to disk, quantised, of eight bits).
    """
    # Graphs that were exported from a denoiser have no weights of their own.
    exported: dict[str, Any] | None = getattr(unet, "deepcache_fingerprint", None)
    if exported is not None:
        return exported
    named = _named_weights(unet)
    listing = "\n".join(f"{name} {tuple(weight.shape)}" for name, weight in sorted(named, key=lambda each: each[0]))
    chosen = _chosen(named)
    reachable = not offloaded_to_disk(unet) and all(
        weight.device.type != "meta" and weight.is_floating_point() and weight.element_size() > 1 for weight in chosen
    )
    return {
        "unet": type(unet).__name__,
        "structure": hashlib.sha256(listing.encode()).hexdigest()[:16],
        # As many significant digits as float32 has.
        "weights": [float(f"{_middle(weight):.7g}") for weight in chosen] if reachable else [],
    }


def _named_weights(unet: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """All weights but those of adapters, by the names that they have without adapters."""
    return [
        (name.replace(".base_layer.", "."), weight) for name, weight in unet.named_parameters() if "lora_" not in name
    ]


def _chosen(named: list[tuple[str, nn.Parameter]]) -> list[nn.Parameter]:
    return [named[index * len(named) // _SAMPLED_WEIGHTS][1] for index in range(min(_SAMPLED_WEIGHTS, len(named)))]


def _middle(weight: nn.Parameter) -> float:
    """The element in the middle, or 0 of an empty tensor."""
    flat = weight.detach().reshape(-1)
    return float(flat[len(flat) // 2]) if len(flat) else 0.0


def refuse(reason: str) -> None:
    """Raises a `ValueError` if there is a reason why a plan does not fit: that of `other_model`, `other_scheduler` or
    `other_guidance`."""
    if reason:
        raise ValueError(
            f"the plan was tuned for something else: {reason}; tune one for this, or force it (force_plan=True, "
            "--force-plan)"
        )


def other_model(plan: Plan, unet: nn.Module) -> str:
    """How a U-Net differs from that of a plan; an empty string if it does not.

    One with a LoRA fused into its weights does not: a LoRA changes matrices and kernels, and neither biases nor norms,
    which differ from model to model.
    """
    found, expected = fingerprint(unet), plan.model
    if found["unet"] != expected.get("unet"):
        return f"the U-Net is a {found['unet']} and not a {expected.get('unet')}"
    if found["structure"] != expected.get("structure"):
        return f"this {found['unet']} has other layers"
    here, there = found["weights"], expected.get("weights", [])
    if not here or not there or not _differ(here, there):
        return ""
    if len(here) == len(there):
        vectors = [number for number, weight in enumerate(_chosen(_named_weights(unet))) if weight.ndim < 2]
        if vectors and not _differ([here[number] for number in vectors], [there[number] for number in vectors]):
            return ""
    return f"this {found['unet']} has other weights"


def _differ(here: list[float], there: list[float]) -> bool:
    return len(here) != len(there) or math.dist(here, there) > _TOLERANCE * math.hypot(*there)


def other_scheduler(plan: Plan, scheduler: Any) -> str:
    """How a scheduler differs from that of a plan; an empty string if it does not."""
    found, expected = scheduler_settings(scheduler), plan.scheduler
    if found["class"] != expected.get("class"):
        return f"the scheduler is a {found['class']} and not a {expected.get('class')}"
    here, there = found["config"], expected.get("config", {})
    for name in sorted({*here, *there}):
        if here.get(name) != there.get(name):
            return f"{name} of the {found['class']} is {here.get(name)!r} and not {there.get(name)!r}"
    return ""


def other_guidance(plan: Plan, scale: float | None) -> str:
    """How a guidance scale differs from those of a plan; an empty string if it does not, or if either is unknown.

    A scale fits up to a tenth below the lowest and above the highest that the plan was tuned at.
    """
    if plan.guidance is None or scale is None:
        return ""
    lowest, highest = plan.guidance
    if lowest * (1 - _GUIDANCE_TOLERANCE) - 1e-9 <= scale <= highest * (1 + _GUIDANCE_TOLERANCE) + 1e-9:
        return ""
    tuned = f"{lowest:g}" if lowest == highest else f"from {lowest:g} to {highest:g}"
    return f"the guidance scale is {scale:g} and not {tuned}"


def guidance_scale(pipe: Any) -> float | None:
    """The guidance scale of the current run of a pipeline: 1 if classifier-free guidance is disabled, None if the
    pipeline does not provide it."""
    scale = getattr(pipe, "guidance_scale", None)
    if not isinstance(scale, Real):
        return None
    return float(scale) if getattr(pipe, "do_classifier_free_guidance", True) else 1.0


def warn_of_unknown_guidance(plan: Plan, scale: float | None) -> bool:
    """Warns if a run has a guidance scale and the plan does not record any, and returns whether it did."""
    if plan.guidance is not None or scale is None:
        return False
    warnings.warn(
        f"the plan does not record the guidance scales it was tuned at, and at guidance {scale:g} it may be worse than "
        f"fewer steps; tune it again with deepcache tune --guidance {scale:g}",
        UserWarning,
        stacklevel=2,
    )
    return True


def scheduler_settings(scheduler: Any) -> dict[str, Any]:
    """The class of a scheduler and its configuration, as far as JSON can represent it; infinity as its name."""
    config = {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in getattr(scheduler, "config", {}).items()
        if not name.startswith("_") and isinstance(value, (bool, int, float, str, type(None)))
    }
    return {"class": type(scheduler).__name__, "config": dict(sorted(config.items()))}
