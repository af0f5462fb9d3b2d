import math

import pytest
import torch

from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
from DeepCache.engine.forecast import PredictionForecast
from DeepCache.engine.guidance import output_tensor
from DeepCache.engine.layouts import branch_of
from DeepCache.schedule import FORECASTS, Step, StepSchedule
from DeepCache.tune.best_schedules import predicted_error
from DeepCache.tune.segment_errors import (
    SegmentErrors,
    continue_from,
    gaps_measured,
    longest_segment,
    record,
    steps_of_sensitivity,
)
from tests.tune.small_pipeline import PROMPTS, sampler_of, small_pipeline

STEPS = 9
GUIDANCE = 3.0


class Tuned:
    """All that is measured of one batch, and the pipeline it was measured on."""

    def __init__(self, guidance):
        self.pipe = small_pipeline()
        self.sampler = sampler_of(self.pipe, PROMPTS, STEPS, guidance, batch=2)
        self.branch = branch_of(self.pipe.unet, 0)
        self.before = state_of(self.pipe.unet)
        self.recording = record(self.sampler, 0, self.branch)
        self.calls = 0
        self.measuring = SegmentErrors(self.sampler, 0, self.recording, self.branch, guidance, self.count)
        self.sensitivity = self.measuring.sensitivity()
        self.errors = self.measuring.measure(self.sensitivity)

    def count(self):
        self.calls += 1

    def generated(self, schedule):
        apply_deepcache(self.pipe, DeepCacheConfig(schedule=schedule))
        try:
            return self.sampler.sample_batch(0)
        finally:
            remove_deepcache(self.pipe)

    def measured(self, schedule):
        """The mean square error in each image when it is generated."""
        return (self.generated(schedule) - self.recording.images).double().square().flatten(1).mean(1)

    def input(self, step):
        """The latents that the U-Net is given, both halves."""
        args, kwargs = self.recording.calls[step]
        return args[0] if args else kwargs["sample"]

    def predicted(self, schedule):
        return [predicted_error(self.errors[..., prompt], schedule) for prompt in range(2)]


def state_of(unet):
    """All that DeepCache and the measuring lay over a U-Net."""
    return {
        name: (type(module), list(module.__dict__), list(module._modules), len(module._forward_hooks))
        for name, module in unet.named_modules()
    }


@pytest.fixture(scope="module")
def guided():
    return Tuned(GUIDANCE)


@pytest.fixture(scope="module")
def unguided():
    return Tuned(1.0)


def with_one_shallow(step, **values):
    return StepSchedule(tuple(Step(False, 0, **values) if number == step else Step(True) for number in range(STEPS)))


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("forecast", ["none", "linear"])
@pytest.mark.parametrize("step", [1, 2, 4, 7])
def test_the_error_of_one_shallow_step_is_close_to_that_of_a_run(step, forecast, reuse, guided):
    schedule = with_one_shallow(step, forecast=forecast, guidance_reuse=reuse)
    for predicted, measured in zip(guided.predicted(schedule), guided.measured(schedule).tolist(), strict=True):
        assert measured / 2 < predicted < measured * 2


def with_one_skipped(step):
    skipped = Step(False, forecast="response", skipped=True)
    return StepSchedule(tuple(skipped if number == step else Step(True) for number in range(STEPS)))


# Not after the first step: a U-Net of random weights answers its input nothing like one that was trained.
@pytest.mark.parametrize("step", [2, 4, 7])
def test_the_error_of_one_skipped_step_is_close_to_that_of_a_run(step, guided):
    schedule = with_one_skipped(step)
    for predicted, measured in zip(guided.predicted(schedule), guided.measured(schedule).tolist(), strict=True):
        assert measured / 2 < predicted < measured * 2


@pytest.mark.parametrize("step", [1, 2, 4, 7])
def test_a_skipped_step_of_a_run_has_the_measured_prediction(step, guided):
    forecast = PredictionForecast(order=1, response=1.0)
    for before in range(max(0, step - 2), step):
        forecast.add(before, guided.input(before), output_tensor(guided.recording.outputs[before]))
    prediction = forecast.at(step, guided.input(step), "response")
    images = continue_from(guided.sampler, 0, guided.recording, step, prediction)
    assert torch.equal(guided.generated(with_one_skipped(step)), images)


@pytest.mark.parametrize("step", [1, 4, 8])
def test_without_guidance_errors_are_close_to_those_of_a_run(step, unguided):
    schedule = with_one_shallow(step, forecast="linear")
    for predicted, measured in zip(unguided.predicted(schedule), unguided.measured(schedule).tolist(), strict=True):
        assert measured / 2 < predicted < measured * 2
    assert torch.isinf(unguided.errors[:, :, 1:, 1]).all()


def test_errors_of_several_shallow_steps_have_the_order_of_runs(guided):
    near = StepSchedule(tuple(Step(number not in (6, 7), forecast="linear") for number in range(STEPS)))
    far = StepSchedule(tuple(Step(number not in (1, 2, 5, 6)) for number in range(STEPS)))
    assert max(guided.predicted(near)) < min(guided.predicted(far))
    assert guided.measured(near).max() < guided.measured(far).min()


def test_a_run_of_full_steps_has_no_error(guided):
    assert guided.predicted(StepSchedule((Step(True),) * STEPS)) == [0, 0]
    assert (guided.errors[0, 0, 0] == 0).all()


def test_errors_rise_from_the_first_shallow_step_to_the_second(guided):
    for full in range(STEPS - 2):
        for gap in range(min(full, 4) + 1):
            assert (guided.errors[full, gap, :3, 0].diff(dim=0) > 0).all()


def test_impossible_segments_are_infinite_and_all_others_finite(guided):
    longest = longest_segment(STEPS)
    assert guided.errors.shape == (STEPS, longest + 2, longest + 1, 3, 2)
    assert guided.errors.dtype == torch.float64
    for full in range(STEPS):
        for gap in range(longest + 2):
            for length in range(longest + 1):
                errors = guided.errors[full, gap, length]
                assert not errors.isnan().any()
                assert errors.isfinite().all() == (gap <= full and full + length < STEPS)
                assert errors.isinf().all() == (not errors.isfinite().all())


def test_every_measured_shallow_step_is_reported(guided):
    longest = longest_segment(STEPS)
    calls = 0
    for full in range(STEPS):
        gaps = [0, *(gap for gap in gaps_measured(STEPS) if gap <= full)]
        calls += len(gaps) * min(longest, STEPS - 1 - full)
    assert guided.calls == calls


@pytest.mark.parametrize("fail", [False, True])
def test_the_unet_is_left_unchanged(fail, guided):
    unet = guided.pipe.unet
    assert state_of(unet) == guided.before
    if fail:

        def raise_in_a_shallow_step(module, args):
            raise KeyboardInterrupt

        handle = unet.conv_out.register_forward_pre_hook(raise_in_a_shallow_step)
        try:
            with pytest.raises(KeyboardInterrupt):
                guided.measuring.measure(guided.sensitivity)
            with pytest.raises(KeyboardInterrupt):
                guided.measuring.sensitivity()
            with pytest.raises(KeyboardInterrupt):
                record(guided.sampler, 0, guided.branch)
        finally:
            handle.remove()
    assert state_of(unet) == guided.before
    assert torch.equal(guided.sampler.sample_batch(0), guided.recording.images)


@pytest.mark.parametrize("step", [0, 3, STEPS - 1])
def test_playback_of_the_recorded_predictions_is_bit_identical(step, guided):
    before = guided.pipe.unet.__dict__.get("forward")
    ran = []
    handle = guided.pipe.unet.conv_in.register_forward_hook(lambda *_: ran.append(1))
    prediction = output_tensor(guided.recording.outputs[step])
    images = continue_from(guided.sampler, 0, guided.recording, step, prediction)
    handle.remove()
    assert torch.equal(images, guided.recording.images)
    assert len(ran) == STEPS - 1 - step
    assert guided.pipe.unet.__dict__.get("forward") is before


def test_another_prediction_gives_other_images(guided):
    prediction = output_tensor(guided.recording.outputs[3]) * 1.1
    assert not torch.equal(continue_from(guided.sampler, 0, guided.recording, 3, prediction), guided.recording.images)


def test_playback_keeps_a_replaced_forward_of_the_unet(guided):
    unet = guided.pipe.unet
    original = unet.forward
    unet.forward = lambda *args, **kwargs: original(*args, **kwargs)
    try:
        put = unet.forward
        continue_from(guided.sampler, 0, guided.recording, 1, output_tensor(guided.recording.outputs[1]))
        assert unet.__dict__["forward"] is put
    finally:
        del unet.forward


def test_the_recording_is_the_run(guided):
    recording = guided.recording
    assert recording.guided
    assert recording.skipped == FORECASTS
    assert len(recording.calls) == len(recording.outputs) == len(recording.features) == STEPS
    (sample, *_), _ = recording.calls[0]
    assert sample.shape == (4, 4, 16, 16)
    assert recording.images.shape == (2, 3, 16, 16)
    assert torch.equal(recording.images, guided.sampler.sample_batch(0))


def test_images_do_not_depend_on_the_batch_composition(guided):
    alone = sampler_of(guided.pipe, PROMPTS, STEPS, GUIDANCE, batch=1)
    assert list(alone.batches) == [0, 1, 2]
    torch.testing.assert_close(alone.sample()[:2], guided.recording.images, atol=1e-4, rtol=0)
    assert guided.sampler.sample().shape == (3, 3, 16, 16)


def test_no_step_is_skipped_if_the_pipeline_reads_attention():
    pipe = small_pipeline()
    for layer in pipe.unet.modules():
        if hasattr(layer, "processor"):
            layer.processor.store = []
    recording = record(sampler_of(pipe, PROMPTS, 2, GUIDANCE, batch=2), 0, branch_of(pipe.unet, 0))
    assert recording.skipped == ()


def test_a_run_without_guidance_is_not_recorded_as_guided(unguided):
    assert not unguided.recording.guided


def test_unmeasured_gaps_are_interpolated(monkeypatch, guided):
    import DeepCache.tune.segment_errors as module

    monkeypatch.setattr(module, "gaps_measured", lambda steps: [1, 4])
    errors = guided.measuring.measure(guided.sensitivity)
    for gap in (0, 1, 4):
        assert torch.equal(errors[:, gap], guided.errors[:, gap])
    for gap, share in ((2, 1 / 3), (3, 2 / 3)):
        # From a full step on that has all four before it; before, the closest gap stands for those beyond.
        between = torch.lerp(errors[4:, 1], errors[4:, 4], share)
        finite = between.isfinite()
        torch.testing.assert_close(errors[4:, gap][finite], between[finite])
        assert errors[4:, gap][~finite].isinf().all()
    assert torch.equal(errors[3, 2], errors[3, 1])
    assert errors[1, 2:].isinf().all()


def test_sensitivity_falls_towards_the_end_and_is_interpolated(guided):
    sensitivity = guided.sensitivity
    assert len(sensitivity) == STEPS
    assert all(value > 0 for value in sensitivity)
    assert sensitivity[-1] < sensitivity[1]
    known = steps_of_sensitivity(STEPS)
    for step in set(range(1, STEPS)) - set(known):
        below = max(at for at in known if at < step)
        above = min(at for at in known if at > step)
        low, high = sorted((sensitivity[below], sensitivity[above]))
        assert low <= sensitivity[step] <= high
    assert sensitivity[0] == pytest.approx(sensitivity[1])


@pytest.mark.parametrize(
    ("steps", "longest", "gaps"),
    [
        (4, 1, [1, 2]),
        (5, 1, [1, 2]),
        (6, 2, [1, 2, 3]),
        (12, 4, [1, 2, 4, 5]),
        (20, 6, [1, 2, 4, 7]),
        (36, 12, [1, 2, 4, 8, 13]),
        (1000, 12, [1, 2, 4, 8, 13]),
    ],
)
def test_segment_lengths_and_measured_gaps_depend_on_the_steps(steps, longest, gaps):
    assert longest_segment(steps) == longest
    assert gaps_measured(steps) == gaps


@pytest.mark.parametrize("steps", [4, 5, 6, 7, 10, 20, 50, 100, 1000])
def test_runs_are_continued_from_few_steps_that_are_denser_towards_the_end(steps):
    found = steps_of_sensitivity(steps)
    assert (found[0], found[-1]) == (1, steps - 1)
    assert len(set(found)) == len(found)
    distances = [after - before for before, after in zip(found, found[1:], strict=False)]
    # The first distance is what is left over.
    assert distances[1:] == sorted(distances[1:], reverse=True)
    assert len(found) <= 4 + 3.4 * math.log(steps)
