"""Checks that raise: settings that do not suit a denoiser, and runs that do not suit the settings."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from torch import nn

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.attention import counting_editor, may_write
from DeepCache.engine.compilation import Compilation
from DeepCache.engine.executor import Executor
from DeepCache.engine.fingerprint import guidance_scale, other_guidance, other_model, other_scheduler, refuse
from DeepCache.engine.guidance import counts_parts, several_prompts, table_of_unknown_rows, why_not_two_halves
from DeepCache.engine.layouts import branch_of
from DeepCache.engine.layouts.layout import Kwargs
from DeepCache.engine.unets import scheduler_of


def check_settings(config: DeepCacheConfig, denoiser: nn.Module, pipe: Any, name: str = "unet") -> None:
    """Raises a `ValueError` if a branch is too deep, the plan is for another model or scheduler, or the denoiser cannot
    be compiled as configured; a `TypeError` if it cannot be cut. `name` is the pipeline's name for it."""
    Compilation(denoiser, config.compile)
    if config.plan is not None and not config.force_plan:
        refuse(other_model(config.plan, denoiser) or other_scheduler(config.plan, scheduler_of(pipe, name)))
    # A branch that is too deep is an error even if nothing is cached.
    for number in config.branches or (config.cache_branch_id,):
        branch_of(denoiser, number)


def check_run(
    config: DeepCacheConfig, executor: Executor, denoiser: nn.Module, pipe: Any, scheduler: Any, call: Sequence[Any]
) -> None:
    """Raises a `ValueError` if a run does not suit the plan, shallow or skipped steps, or guidance reuse, before any
    layer has run.

    `call` is the sample of the first call, its positional and its keyword arguments; empty if the samples of the batch
    have several timesteps, so that every step is full.
    """
    if config.plan is not None and not config.force_plan:
        refuse(other_scheduler(config.plan, scheduler) or other_guidance(config.plan, guidance_scale(pipe)))
    editor = counting_editor(executor.modules) if executor.patches or config.any_skipped else ""
    if editor:
        raise ValueError(
            f"a {editor} counts the calls of attention layers; a shallow step makes fewer calls, so it would edit the "
            "wrong layers. Disable DeepCache for it"
        )
    if config.any_skipped and any(map(may_write, executor.attention)):
        raise ValueError(
            "a skipped step runs no layer, and the pipeline reads the attention maps of the U-Net. "
            "Use between='shallow'"
        )
    if config.any_guidance_reuse and call:
        reason = _why_no_guidance_reuse(executor, denoiser, pipe, *call)
        if reason:
            raise ValueError(f"guidance_reuse runs half of a guided batch, and {reason}; turn it off")


def _why_no_guidance_reuse(
    executor: Executor, denoiser: nn.Module, pipe: Any, sample: Any, args: Any, kwargs: Kwargs
) -> str:
    reason = why_not_two_halves(pipe, denoiser, sample)
    if reason:
        return reason
    if any(map(may_write, executor.deep_attention)):
        return "the pipeline reads the attention maps of whole batches"
    if counts_parts(executor.attention):
        return "an attention processor of the U-Net counts on the whole batch"
    if several_prompts(args, kwargs, sample):
        return "the batch of the U-Net has the same latents with several prompts in one half"
    table = table_of_unknown_rows(kwargs, sample)
    if table:
        return f"{table!r} of its cross_attention_kwargs has as many rows as the batch, which may be something else"
    return ""


def refuse_another_thread(calling: int, denoiser: nn.Module) -> None:
    """Raises a `RuntimeError` if the thread whose call has not ended is another one, and alive."""
    others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
    if calling in others:
        raise RuntimeError(
            f"two threads call this {type(denoiser).__name__} at once, and DeepCache changes it for the length of a "
            "call. Make them take turns, or give each its own copy"
        )


def refuse_within_a_call(calling: int | None, denoiser: nn.Module) -> None:
    """Raises a `RuntimeError` if this thread's call is in flight."""
    if calling == threading.get_ident():
        raise RuntimeError(
            f"DeepCache cannot be changed or removed within a call of the {type(denoiser).__name__}. Do it between two "
            "steps, for instance in callback_on_step_end"
        )
