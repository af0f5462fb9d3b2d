"""How strongly a run answers to an error: by its guidance scale, its number of steps and the order of its solver."""

from __future__ import annotations

import pytest
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.engine.stiffness import stiffness
from DeepCache.schedule import ExplicitSchedule
from tests.engine.dummy_unet import DummyUNet, Pipeline


def test_of_a_step_is_its_share_of_the_run_times_the_guidance_scale():
    assert stiffness(7.5, DDIMScheduler(), 50) == pytest.approx(0.15)
    assert stiffness(2.0, EulerDiscreteScheduler(), 25) == pytest.approx(0.08)


@pytest.mark.parametrize(
    ("scheduler", "factor"),
    [
        (DPMSolverMultistepScheduler(solver_order=1), 1),
        (DPMSolverMultistepScheduler(), 1.5),
        (UniPCMultistepScheduler(), 1.5),
        (DPMSolverMultistepScheduler(solver_order=3), 2),
        (PNDMScheduler(skip_prk_steps=True), 1),
        (object(), 1),
        (None, 1),
    ],
)
def test_a_solver_that_continues_past_predictions_carries_on_more(scheduler, factor):
    assert stiffness(4.0, scheduler, 40) == pytest.approx(0.1 * factor)


def test_without_guidance_the_scale_is_one():
    assert stiffness(0.0, None, 10) == stiffness(1.0, None, 10) == pytest.approx(0.1)


def test_what_nothing_tells_is_taken_for_the_usual():
    assert stiffness(None, None, None) == stiffness(7.5, None, 25)


class Scheduled(Pipeline):
    """Of a guidance scale that diffusers' pipelines have too."""

    def __init__(self, timesteps, guidance):
        super().__init__(DummyUNet(), timesteps)
        self.guidance_scale = guidance


# The deep feature is 22 noisy + timestep. Its slopes are 1 and 4.
@pytest.mark.parametrize(("guidance", "left"), [(1.0, 4 - 2 / 64), (4.0, 2), (8.0, 2 / 8)])
def test_a_run_bounds_its_forecasts_by_its_own(guidance, left):
    # Two of twenty steps from one full step to the next.
    pipe = Scheduled((0, 9, 2, 9, 10, *range(90, 75, -1)), guidance)
    apply_deepcache(pipe, DeepCacheConfig(schedule=ExplicitSchedule((0, 2, 4))))
    found = [pipe.call(1, step) for step in range(6)]
    assert found[5] == pytest.approx(23 + 10 + left)
