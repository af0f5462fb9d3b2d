"""Pipelines that are built and run in a moment, and plans for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel

from DeepCache.bench import ablation, benchmark
from DeepCache.engine import stats
from DeepCache.engine.cost import Costs, count_costs
from DeepCache.engine.fingerprint import fingerprint, scheduler_settings
from DeepCache.models import set_scheduler
from DeepCache.plan import Plan
from DeepCache.schedule import Step, StepSchedule


def unconditional_pipeline(**changed: Any) -> DDPMPipeline:
    """Generates unconditional images of 16 pixels."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        **{
            "sample_size": 16,
            "layers_per_block": 1,
            "block_out_channels": (4, 8),
            "down_block_types": ("DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D"),
            "norm_num_groups": 2,
            "add_attention": False,
        }
        | changed
    )
    pipe = DDPMPipeline(unet.eval().requires_grad_(False), DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def plan_for(pipe: Any, each: tuple[Step, ...], steps: int | None = None) -> Plan:
    """A plan with these steps for a pipeline at any guidance scale, tuned for that many steps where it is given."""
    return Plan(
        StepSchedule(each),
        fingerprint(pipe.unet),
        scheduler_settings(pipe.scheduler),
        tuned={} if steps is None else {"steps": steps},
        guidance=(0, 100),
    )


def use_model(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any]) -> None:
    """Puts a pipeline instead of every model; what its steps cost is counted once for all tests."""

    def load(model: str, *, scheduler: str | None = None, **_: Any) -> Any:
        pipe = make()
        if scheduler is not None:
            set_scheduler(pipe, scheduler)
        return pipe

    for module in (benchmark, ablation):
        monkeypatch.setattr(module, "load_pipeline", load)
    remember_costs(monkeypatch)


def remember_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has what the steps of a model cost counted once for all tests."""
    for module in (benchmark, stats):
        monkeypatch.setattr(module, "count_costs", _remembered)


class _RememberedCosts:
    """`count_costs` that counts but once what is alike."""

    def __init__(self) -> None:
        self._found: dict[Any, Costs] = {}

    def __call__(self, unet: Any, args: Any, kwargs: Any, branches: Any = None) -> Costs:
        branches = None if branches is None else tuple(branches)
        numbers = branches and tuple(getattr(each, "number", each) for each in branches)
        key = (type(unet), *unet.config.block_out_channels, args[0].shape, numbers)
        if key not in self._found:
            self._found[key] = count_costs(unet, args, kwargs, branches)
        return self._found[key]


_remembered = _RememberedCosts()
