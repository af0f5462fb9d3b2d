"""The response forecast of predictions, computed by hand; no sample affects another."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.engine.forecast import PredictionForecast
from DeepCache.schedule import FORECASTS, Step, StepSchedule
from tests.engine.dummy_unet import DummyUNet, Pipeline

pytestmark = pytest.mark.usefixtures("nothing_is_counted")


def forecast_of(*pairs, response=1.0):
    forecast = PredictionForecast(order=2, response=response)
    for place, (sample, prediction) in enumerate(pairs):
        forecast.add(place, torch.as_tensor(sample), torch.as_tensor(prediction))
    return forecast


def test_by_hand_with_a_response_for_each_sample():
    forecast = forecast_of(
        ([[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]),
        ([[1.0, 3.0], [2.0, 0.0]], [[5.0, 0.0], [1.0, 5.0]]),
    )
    # (1, 3) · (5, 0) / 10 = 1/2, and (2, 0) · (1, 5) / 4 = 1/2; they continue by half of (5, 0) and of (0, 4).
    found = forecast.at(2, torch.tensor([[6.0, 3.0], [2.0, 4.0]]), "response")
    assert found.tolist() == [[7.5, 0], [1, 7]]


@pytest.mark.parametrize("slope", [-3.0, -1.0, -0.25, 0.0, 0.5, 1.0, 7.0])
def test_the_response_is_from_minus_one_to_one(slope):
    forecast = forecast_of(([[1.0]], [[2.0]]), ([[3.0]], [[2 + 2 * slope]]))
    found = forecast.at(2, torch.tensor([[7.0]]), "response").item()
    assert found == 2 + 2 * slope + 4 * min(max(slope, -1), 1)


@pytest.mark.parametrize("response", [0.0, 1.0])
def test_with_one_value_it_is_the_given_response(response):
    forecast = forecast_of(([[1.0]], [[2.0]]), response=response)
    assert forecast.at(1, torch.tensor([[5.0]]), "response").item() == 2 + 4 * response


def test_an_input_that_has_not_moved_has_no_response():
    forecast = forecast_of(([[1.0]], [[2.0]]), ([[1.0]], [[5.0]]))
    assert forecast.at(2, torch.tensor([[9.0]]), "response").item() == 5


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e30])
def test_a_sample_that_diverges_does_not_change_the_others(broken):
    samples = torch.randn(3, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    predictions = torch.randn(2, 4, 2, 8, 8, generator=torch.Generator().manual_seed(1))

    def found(samples, predictions):
        pairs = zip(samples[:2], predictions, strict=True)
        return forecast_of(*pairs).at(2, samples[2], "response")

    sound = found(samples, predictions)
    samples, predictions = samples.clone(), predictions.clone()
    samples[1:, 2] *= broken
    predictions[1, 2] *= broken
    others = [0, 1, 3]
    assert torch.equal(found(samples, predictions)[others], sound[others])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_of_half_precision_do_not_overflow(dtype):
    # The squares of 4096 differences of 300 are 3.7e8, and one of 80000 is beyond float16 itself.
    for low, high in ((0, 300), (-40000, 40000)):
        start, end = torch.full((1, 4096), low, dtype=dtype), torch.full((1, 4096), high, dtype=dtype)
        forecast = forecast_of((start, start / 2), (end, end / 2))
        found = forecast.at(2, end + 64, "response")
        assert found.dtype is dtype
        assert torch.equal(found, (end.float() / 2 + (end + 64).float() / 2 - end.float() / 2).to(dtype))


def test_the_forecast_has_the_type_of_the_predictions():
    prediction = torch.zeros(1, 2, dtype=torch.bfloat16)
    forecast = forecast_of((torch.zeros(1, 2), prediction), (torch.ones(1, 2), prediction))
    for rule in FORECASTS:
        assert forecast.at(2, torch.ones(1, 2), rule).dtype is torch.bfloat16


def test_inputs_are_stored_only_for_the_response():
    pair = torch.zeros(1, 8), torch.zeros(1, 8)
    assert forecast_of(pair).bytes == 2 * 8 * 4
    assert forecast_of(pair, response=None).bytes == 8 * 4


# The U-Net returns 23 noisy + timestep.
@pytest.mark.parametrize(
    ("scheduler", "first"),
    [({}, 33 + 1), ({"prediction_type": "epsilon"}, 33 + 1), ({"prediction_type": "v_prediction"}, 33)],
)
def test_on_a_unet_by_hand(scheduler, first):
    pipe = Pipeline(DummyUNet(), (10, 20, 30, 20, 90, 90))
    pipe.scheduler.config = scheduler
    apply_deepcache(pipe, DeepCacheConfig(2, forecast="response", between="skipped"))
    found = [pipe.call(noisy, step) for step, noisy in enumerate((1, 2, 3, 5, 1, 3))]
    # 33 and 99 at inputs of 1 and 3: the response is 1. Then 113 at 1, where the response is -7, bounded to -1.
    assert found == [33, first, 99, 99 + 2, 113, 113 - 2]


class Inpainting(DummyUNet):
    """The latents, and two channels that are not denoised."""

    config = SimpleNamespace(in_channels=3, out_channels=1)

    def forward(self, noisy, when):
        return super().forward(noisy[:, :1], when)


class LearnedVariance(DummyUNet):
    def forward(self, noisy, when):
        (prediction,) = super().forward(noisy, when)
        return (torch.cat([prediction, prediction + 1000], dim=1),)


def test_an_inpainting_unet_responds_to_its_latents():
    pipe = Pipeline(Inpainting())
    apply_deepcache(pipe, DeepCacheConfig(2, forecast="response", between="skipped"))
    found = []
    for noisy, timestep in zip((1.0, 2.0, 3.0, 5.0), pipe.scheduler.timesteps, strict=False):
        found.append(pipe.unet(torch.tensor([[[[noisy]], [[70 * noisy]], [[-5.0]]]]), timestep)[0].item())
    assert found == [33, 34, 99, 101]


@pytest.mark.parametrize("forecast", ["none", "linear", "quadratic", "limited"])
def test_predictions_of_another_shape_are_skipped_with_any_other_forecast(forecast):
    pipe = Pipeline(LearnedVariance())
    pipe.guidance_scale = 1.0
    engine = apply_deepcache(pipe, DeepCacheConfig(2, forecast=forecast, between="skipped"))
    found = [pipe.unet(torch.ones(1, 1, 1, 1), timestep)[0].flatten().tolist() for timestep in pipe.scheduler.timesteps]
    slope = 0 if forecast == "none" else 10
    assert found[:4] == [[33, 1033], [33, 1033], [53, 1053], [53 + slope, 1053 + slope]]
    assert engine.stats.pattern == "F-F-F-F"


@pytest.mark.parametrize(
    "config",
    [
        DeepCacheConfig(2, forecast="response", between="skipped"),
        DeepCacheConfig(3, forecast="response", between="alternating"),
        DeepCacheConfig(schedule=StepSchedule((*[Step(True)] * 6, Step(False, forecast="response", skipped=True)))),
    ],
    ids=["skipped", "alternating", "plan"],
)
def test_the_response_of_predictions_of_another_shape_is_refused_at_the_first_step(config):
    pipe = Pipeline(LearnedVariance())
    engine = apply_deepcache(pipe, config)
    message = r"prediction has the shape of its latents, got \(1, 2, 1, 1\) for \(1, 1, 1, 1\)\. Use forecast='limited'"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            pipe.unet(torch.ones(1, 1, 1, 1), pipe.scheduler.timesteps[0])
    engine.configure(DeepCacheConfig(3, forecast="limited", between="skipped"))
    pipe.scheduler.timesteps = pipe.scheduler.timesteps.clone()
    for timestep in pipe.scheduler.timesteps:
        pipe.unet(torch.ones(1, 1, 1, 1), timestep)
    assert engine.stats.pattern == "F--F--F"
