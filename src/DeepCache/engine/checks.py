"""What is refused: settings that are not for a denoiser, and runs that they are not for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.attention import may_write
from DeepCache.engine.compilation import Compilation
from DeepCache.engine.fingerprint import other_model, other_scheduler, refuse
from DeepCache.engine.guidance import counts_parts, several_prompts, why_not_two_halves
from DeepCache.engine.layouts import branch_of
from DeepCache.engine.unets import scheduler_of

__all__ = ["check_guidance_reuse", "check_settings", "check_skipped_steps"]


def check_settings(config: DeepCacheConfig, denoiser: nn.Module, pipe: Any, name: str = "unet") -> None:
    """Refuses settings that are not for this denoiser.

    Args:
        config: the settings.
        denoiser: the denoiser.
        pipe: its pipeline.
        name: what the pipeline calls it.

    Raises:
        ValueError: a branch is too deep, the plan is for another model or scheduler, or there is nothing in the
            denoiser that could be compiled as asked for.
        TypeError: the denoiser cannot be cut.
    """
    Compilation(denoiser, config.compile)
    if config.plan is not None and not config.force_plan:
        refuse(other_model(config.plan, denoiser) or other_scheduler(config.plan, scheduler_of(pipe, name)))
    # A branch that is too deep is an error where nothing is cached too.
    for number in config.branches or (config.cache_branch_id,):
        branch_of(denoiser, number)


def check_skipped_steps(denoiser: nn.Module) -> None:
    """Refuses skipped steps where the pipeline reads what layers write.

    Raises:
        ValueError: it does.
    """
    if any(may_write(layer) for layer in _attention(denoiser)):
        raise ValueError(
            "a skipped step runs no layer, and the pipeline reads the attention maps of the U-Net; "
            "take between='shallow'"
        )


def check_guidance_reuse(
    pipe: Any,
    denoiser: nn.Module,
    sample: torch.Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    listening: bool,
) -> None:
    """Refuses guidance reuse where a batch is not two halves of which one can run alone.

    Args:
        pipe: the pipeline.
        denoiser: the denoiser.
        sample: the sample of a call.
        args: its positional arguments.
        kwargs: its keyword arguments.
        listening: whether the pipeline reads what deep attention layers write.

    Raises:
        ValueError: it is not.
    """
    reason = why_not_two_halves(pipe, denoiser, sample)
    if not reason and listening:
        reason = "the pipeline reads the attention maps of whole batches"
    if not reason and counts_parts(_attention(denoiser)):
        reason = "an attention processor of the U-Net counts on the whole batch"
    if not reason and several_prompts(args, kwargs, sample):
        reason = "the batch of the U-Net has the same latents with several prompts in one half"
    if reason:
        raise ValueError(f"guidance_reuse runs half of a guided batch, and {reason}; turn it off")


def _attention(denoiser: nn.Module) -> list[nn.Module]:
    return [module for module in denoiser.modules() if hasattr(module, "processor")]
