"""The limited forecast: a line whose slope is bounded, element by element, by twice the slope before it.

This bound holds at a stiffness of 0.4 over the distance of the latest two values; it is looser below and tighter above.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.engine.forecast import Forecast, stiffness
from DeepCache.schedule import ExplicitSchedule
from tests.engine.dummy_unet import DummyUNet, Pipeline
from tests.releases import HALF

pytestmark = pytest.mark.usefixtures("nothing_is_counted")


def forecast_of(places, values, order=2):
    forecast = Forecast(order, stiffness=0.4 / (places[-1] - places[-2]))
    for place, value in zip(places, values, strict=True):
        forecast.add(place, value)
    return forecast


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0, 2, 4), 6),
        ((0, 2, 3), 4),
        # Four times as steep as before, bounded to twice.
        ((0, 2, 10), 14),
        ((0, -2, -10), -14),
        ((0, 2, 6), 10),
        # It turned, or did not move.
        ((0, 2, 1), 1),
        ((0, -2, 5), 5),
        ((2, 2, 6), 6),
        ((0, 2, 2), 2),
    ],
)
def test_by_hand(values, expected):
    values = [torch.tensor(float(value)) for value in values]
    assert forecast_of((0, 2, 4), values).at(6, "limited") == expected
    # Half the distance and twice the distance.
    latest = values[-1]
    assert forecast_of((0, 2, 4), values).at(5, "limited") == latest + (expected - latest) / 2
    assert forecast_of((0, 2, 4), values).at(8, "limited") == latest + (expected - latest) * 2


def test_slopes_are_those_of_uneven_places():
    # Slopes of 1 per step and then of 3, bounded to 2.
    forecast = forecast_of((0, 1, 5), torch.tensor([[0.0], [1.0], [13.0]]))
    assert forecast.at(8, "limited").item() == pytest.approx(13 + 3 * 2, rel=1e-6)
    # Slopes of 1 and 1.5.
    forecast = forecast_of((0, 4, 6), torch.tensor([[0.0], [4.0], [7.0]]))
    assert forecast.at(10, "limited").item() == pytest.approx(7 + 4 * 1.5, rel=1e-6)


def test_the_bound_is_computed_again_for_every_value():
    forecast = forecast_of((0, 1, 2), [torch.tensor(value) for value in (0.0, 1.0, 5.0)])
    assert forecast.at(3, "limited") == 7
    forecast.add(3, torch.tensor(13.0))
    # Slopes of 4 and 8.
    assert forecast.at(4, "limited") == 21
    forecast.add(4, torch.tensor(12.0))
    assert forecast.at(5, "limited") == 12


def test_with_two_values_or_a_lower_order_it_is_the_line():
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    for forecast in (forecast_of((0, 3), values[:2]), forecast_of((0, 1, 4), values, order=1)):
        assert torch.equal(forecast.at(9, "limited"), forecast.at(9, "linear"))


def test_it_is_the_line_where_slopes_agree_and_re_use_where_they_do_not():
    places = (2, 5, 7)
    values = torch.randn(3, 5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    forecast = forecast_of(places, values)
    found, line = forecast.at(10, "limited"), forecast.at(10, "linear")
    before, slope = (values[1] - values[0]) / 3, (values[2] - values[1]) / 2
    agree = (slope / before > 0.001) & (slope / before < 1.999)
    turned = slope / before < -0.001
    assert min(agree.sum(), turned.sum()) > 500
    assert torch.equal(found[agree], line[agree])
    assert torch.equal(found[turned], values[2][turned])
    assert ((found - values[2]).abs() <= 3 * 2 * before.abs() + 1e-12).all()
    assert ((found - values[2]).abs() <= (line - values[2]).abs()).all()


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@HALF
def test_half_precision_is_correct_up_to_rounding(dtype, scale):
    values = (scale * torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))).to(dtype)
    found = forecast_of((0, 3, 6), values).at(8, "limited")
    expected = forecast_of((0, 3, 6), values.double()).at(8, "limited")
    assert found.dtype is dtype
    # The smallest numbers of float16 are evenly spaced.
    limits = torch.finfo(dtype)
    spacing = limits.eps * max(values.abs().max().item(), limits.smallest_normal)
    assert (found.double() - expected).abs().max() <= 16 * spacing


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e30])
def test_a_diverging_sample_does_not_affect_the_others(broken):
    values = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    diverging = values.clone()
    diverging[1:, 2] *= broken
    others = [0, 1, 3]
    alone = forecast_of((0, 1, 3), values[:, others]).at(5, "limited")
    assert torch.equal(forecast_of((0, 1, 3), diverging).at(5, "limited")[others], alone)


def test_the_bounded_slope_counts_in_memory():
    forecast = forecast_of((0, 1, 2), torch.zeros(3, 4))
    assert forecast.bytes == 3 * 4 * 4
    forecast.at(3, "limited")
    assert forecast.bytes == 4 * 4 * 4
    forecast.add(4, torch.zeros(4))
    assert forecast.bytes == 3 * 4 * 4


# The U-Net returns 23 noisy + timestep; the deep feature at branch 0 is 22 noisy + timestep.
def test_a_shallow_step_gets_the_limited_deep_feature():
    pipe = Pipeline(DummyUNet(), (0, 1, 5, 6, 7, 4, 3))
    # Of seven steps: a stiffness of 0.4.
    pipe.guidance_scale = 2.8
    schedule = ExplicitSchedule((0, 1, 2, 5))
    engine = apply_deepcache(pipe, DeepCacheConfig(schedule=schedule))
    found = [pipe.call(1, step) for step in range(7)]
    # After slopes of 1 and 4 it continues by 2 per step; from 5 at step 2 it falls to 4, and is re-used.
    assert found == pytest.approx([23, 24, 28, 30, 32, 27, 27])
    assert engine.stats.pattern == "FFF..F."


class Prompted(DummyUNet):
    def forward(self, noisy, when, prompt):
        (prediction,) = super().forward(noisy, when)
        return (prediction + prompt * when,)


def test_guidance_reuse_gets_the_limited_difference():
    pipe = Pipeline(Prompted(), (0, 1, 5, 90, 90))
    # Of five steps: a stiffness of 0.4.
    pipe.guidance_scale = 2.0
    config = DeepCacheConfig(schedule=ExplicitSchedule((0, 1, 2)), guidance_reuse=True)
    engine = apply_deepcache(pipe, config)
    # Only the first half has the prompt: the difference is the timestep.
    found = [pipe.unet(torch.ones(2), timestep, torch.tensor([1.0, 0.0])) for timestep in pipe.scheduler.timesteps]
    # Deep features of 22, 23 and 27 continue by 2 per step, and so do differences of 0, 1 and 5.
    assert [output[0].tolist() for output in found] == [[23, 23], [25, 24], [33, 28], [37, 30], [41, 32]]
    assert (engine.stats.pattern, engine.stats.halved_steps) == ("FFF..", 2)


@pytest.mark.parametrize(
    ("stiff", "expected"),
    [(0.0, 18), (0.05, 18 - 4 / 64), (0.1, 18 - 4 / 8), (0.2, 14), (0.4, 10 + 4 / 8), (0.8, 10 + 4 / 64)],
)
def test_the_bound_is_tighter_the_stiffer_the_run(stiff, expected):
    forecast = Forecast(2, stiff)
    for place, value in ((0, 0.0), (2, 2.0), (4, 10.0)):
        forecast.add(place, torch.tensor(value))
    # Slopes of 1 and 4. At a stiffness of 0.4 over two steps it is twice the first; more below, less above.
    assert forecast.at(6, "limited").item() == pytest.approx(expected, rel=1e-6)
    # The other rules ignore stiffness.
    assert forecast.at(6, "linear") == 18


def test_a_first_slope_is_followed_less_the_stiffer_the_run():
    for stiff, expected in ((0.0, 14.0), (0.2, 14.0), (0.4, 10 + 4 / 8)):
        forecast = Forecast(2, stiff)
        for place, value in ((0, 6.0), (2, 10.0)):
            forecast.add(place, torch.tensor(value))
        assert forecast.at(4, "limited").item() == pytest.approx(expected, rel=1e-6)


def test_the_bound_is_tighter_the_further_two_values_are_apart():
    near, far = Forecast(2, 0.2), Forecast(2, 0.2)
    for number, value in enumerate((0.0, 2.0, 10.0)):
        near.add(2 * number, torch.tensor(value))
        far.add(4 * number, torch.tensor(value))
    assert near.at(6, "limited").item() == pytest.approx(14, rel=1e-6)
    assert far.at(12, "limited").item() == pytest.approx(10 + 4 / 8, rel=1e-6)


def test_a_run_counts_the_bounded_slope_in_memory():
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, DeepCacheConfig(2))
    for step in range(5):
        pipe.call(1, step)
    assert engine.stats.bytes_kept == 3 * 4
    pipe.call(1, 5)
    assert engine.stats.bytes_kept == 4 * 4


def test_stiffness_is_the_share_of_the_run_times_the_guidance_scale():
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
def test_a_solver_that_extrapolates_is_stiffer(scheduler, factor):
    assert stiffness(4.0, scheduler, 40) == pytest.approx(0.1 * factor)


def test_without_guidance_the_scale_is_one():
    assert stiffness(0.0, None, 10) == stiffness(1.0, None, 10) == pytest.approx(0.1)


def test_unknown_settings_have_the_usual_values():
    assert stiffness(None, None, None) == stiffness(7.5, None, 25)


# The deep feature is 22 noisy + timestep. Its slopes are 1 and 4.
@pytest.mark.parametrize(("guidance", "left"), [(1.0, 4 - 2 / 64), (4.0, 2), (8.0, 2 / 8)])
def test_a_run_bounds_its_forecasts_by_its_stiffness(guidance, left):
    # Two of twenty steps from one full step to the next.
    pipe = Pipeline(DummyUNet(), (0, 9, 2, 9, 10, *range(90, 75, -1)))
    pipe.guidance_scale = guidance
    apply_deepcache(pipe, DeepCacheConfig(schedule=ExplicitSchedule((0, 2, 4))))
    found = [pipe.call(1, step) for step in range(6)]
    assert found[5] == pytest.approx(23 + 10 + left)
