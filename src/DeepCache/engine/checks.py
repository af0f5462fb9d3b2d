"""What is refused: settings that are not for a denoiser, and runs that they are not for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.attention import may_write
from DeepCache.engine.compilation import Compilation
from DeepCache.engine.fingerprint import guidance_scale, other_guidance, other_model, other_scheduler, refuse
from DeepCache.engine.guidance import counts_parts, several_prompts, why_not_two_halves
from DeepCache.engine.layouts import branch_of
from DeepCache.engine.unets import scheduler_of

__all__ = ["check_run", "check_settings"]


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


def check_run(
    config: DeepCacheConfig, denoiser: nn.Module, pipe: Any, scheduler: Any, call: Sequence[Any], listening: bool
) -> None:
    """Refuses a run that the settings are not for, before anything has run. Of the scheduler and the guidance scale
    nothing is known before a run.

    Args:
        config: the settings.
        denoiser: the denoiser.
        pipe: its pipeline.
        scheduler: the scheduler of the run.
        call: the sample of the first call, its positional and its keyword arguments; empty where the samples of the
            batch stand at several timesteps, so that every step is full.
        listening: whether the pipeline reads what deep attention layers write.

    Raises:
        ValueError: it does not suit the plan, skipped steps or guidance reuse.
    """
    if config.plan is not None and not config.force_plan:
        refuse(other_scheduler(config.plan, scheduler) or other_guidance(config.plan, guidance_scale(pipe)))
    attention = [module for module in denoiser.modules() if hasattr(module, "processor")]
    if config.any_skipped and any(may_write(layer) for layer in attention):
        raise ValueError(
            "a skipped step runs no layer, and the pipeline reads the attention maps of the U-Net; "
            "take between='shallow'"
        )
    if config.any_guidance_reuse and call:
        sample, args, kwargs = call
        reason = why_not_two_halves(pipe, denoiser, sample)
        if not reason and listening:
            reason = "the pipeline reads the attention maps of whole batches"
        if not reason and counts_parts(attention):
            reason = "an attention processor of the U-Net counts on the whole batch"
        if not reason and several_prompts(args, kwargs, sample):
            reason = "the batch of the U-Net has the same latents with several prompts in one half"
        if reason:
            raise ValueError(f"guidance_reuse runs half of a guided batch, and {reason}; turn it off")
