"""A denoising run of a bare U-Net, with any helper that has the reference package's interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from benchmarks.harness.tiny_unets import UnetInputs


@dataclass
class BarePipe:
    """All that the reference package needs of a pipeline."""

    unet: nn.Module
    scheduler: Any


def ddim(steps: int = 7) -> DDIMScheduler:
    """A DDIM scheduler with its timesteps set."""
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(steps)
    return scheduler


@torch.no_grad()
def run_denoising(
    unet: nn.Module,
    scheduler: Any,
    helper_class: Any,
    interval: int,
    branch: int,
    inputs: UnetInputs,
    start: int = 0,
) -> list[Tensor]:
    """The outputs of the U-Net at every step of a run, and the final sample.

    `helper_class` is a `DeepCacheSDHelper`, ours or the reference package's, or None for no caching; `start` is the
    number of timesteps omitted at the beginning, as in image-to-image pipelines.
    """
    pipe = BarePipe(unet, scheduler)
    if helper_class is not None:
        helper = helper_class(pipe=pipe)
        helper.set_params(cache_interval=interval, cache_branch_id=branch)
        helper.enable()
    results, sample = [], inputs.sample
    for timestep in scheduler.timesteps[start:]:
        prediction = pipe.unet(sample, timestep, **inputs.kwargs, return_dict=False)[0]
        sample = scheduler.step(prediction, timestep, sample, return_dict=False)[0]
        results.append(prediction)
    if helper_class is not None:
        helper.disable()
    return [*results, sample]


def identical(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether two runs are bit-identical."""
    return len(first) == len(second) and all(map(torch.equal, first, second))
