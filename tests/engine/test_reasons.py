"""Why a step was full although the schedule did not say so."""

from __future__ import annotations

import pytest
import torch

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.schedule import Schedule, Step
from tests.engine.dummy_unet import DummyUNet, Pipeline


def _pipe(**settings):
    pipe = Pipeline(DummyUNet())
    return pipe, apply_deepcache(pipe, DeepCacheConfig(**{"cache_interval": 3, "forecast": "none"} | settings))


def test_a_run_as_scheduled_has_no_reasons():
    pipe, engine = _pipe()
    for step in range(7):
        pipe.call(1, step)
    assert engine.stats.pattern == "F..F..F"
    assert engine.stats.reasons == ()
    assert "not scheduled" not in str(engine.stats)


def test_the_first_step_is_full_whatever_a_schedule_says():
    class Never(Schedule):
        kind = "never"
        branches = (0,)

        def step(self, number, steps):
            return Step(False)

    pipe, engine = _pipe(schedule=Never())
    for step in range(3):
        pipe.call(1, step)
    assert engine.stats.pattern == "F.."
    assert engine.stats.reasons == ((0, "first of the run"),)


def test_another_shape():
    pipe, engine = _pipe()
    pipe.call(1, 0)
    pipe.unet(torch.ones(2), pipe.scheduler.timesteps[1])
    pipe.unet(torch.ones(2), pipe.scheduler.timesteps[2])
    assert engine.stats.pattern == "FF."
    assert engine.stats.reasons == ((1, "other shape, dtype or device"),)


def test_a_full_step_that_the_pipeline_leaves_out():
    pipe, engine = _pipe()
    for step in (0, 1, 2, 4, 5):
        pipe.call(1, step)
    assert engine.stats.pattern == "F..F."
    assert engine.stats.reasons == ((4, "steps were left out before it"),)


def test_a_full_step_that_a_pipeline_leaves_out_at_every_second_step():
    pipe, engine = _pipe()
    for step in (0, 2, 4, 6):
        pipe.call(1, step)
    assert engine.stats.pattern == "FFFF"
    assert engine.stats.reasons == (
        (2, "steps were left out before it"),
        (4, "makes up for a full step that was left out"),
    )


def test_a_call_that_is_new_in_mid_run():
    pipe, engine = _pipe()
    pipe.call(1, 0)
    pipe.call(1, 1)
    pipe.call(2, 1)
    pipe.call(1, 2)
    pipe.call(2, 2)
    assert engine.stats.reasons == (
        (1, "first call of its slot"),
        (2, "which of several calls of the step before it follows is not known yet"),
    )


def test_several_timesteps_in_a_batch():
    pipe, engine = _pipe()
    for step in range(3):
        pipe.unet(torch.ones(2), pipe.scheduler.timesteps[step : step + 2])
    assert {reason for _, reason in engine.stats.reasons} == {"several timesteps in the batch"}


def test_a_gradient_is_counted_and_named():
    pipe, engine = _pipe()
    for step in range(3):
        if step:
            pipe.unet(torch.ones(1, requires_grad=True), pipe.scheduler.timesteps[step])
        pipe.call(1, step)
    assert engine.stats.pattern == "F.."
    assert engine.stats.reasons == ((0, "a gradient is wanted"), (1, "a gradient is wanted"))


def test_they_are_shown_with_their_steps():
    pipe, engine = _pipe()
    pipe.call(1, 0)
    for step in (1, 2, 3, 4):
        pipe.unet(torch.ones(2 + step), pipe.scheduler.timesteps[step])
    assert "full though not scheduled, other shape, dtype or device: step 1, 2, 4" in str(engine.stats)


def test_slots_may_be_named_by_what_a_call_is_for():
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(
        pipe, DeepCacheConfig(4, forecast="none"), slot_key=lambda args, kwargs: float(args[0]) >= 100
    )
    # The two calls change places from step to step, and the second comes alone at the end.
    found = [
        [pipe.call(1, 0), pipe.call(100, 0)],
        [pipe.call(101, 1), pipe.call(2, 1)],
        [pipe.call(102, 2)],
    ]
    # A shallow step adds its own skip connection to the feature of its own slot: 23 + 9 x and 23 x + timestep.
    feature = found[0][0] - 1, found[0][1] - 100
    assert found[1] == [feature[1] + 101, feature[0] + 2]
    assert found[2] == [feature[1] + 102]
    assert engine.stats.pattern == "F.."


def test_calls_of_one_name_are_told_apart_by_their_order():
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, DeepCacheConfig(2, forecast="linear"), slot_key=lambda args, kwargs: "all")
    named = Pipeline(DummyUNet())
    apply_deepcache(named, DeepCacheConfig(2, forecast="linear"), slot_key=lambda args, kwargs: float(args[0]))
    for step in range(7):
        assert [pipe.call(1 + call, step) for call in range(2)] == [named.call(1 + call, step) for call in range(2)]
    assert engine.stats.pattern == "F.F.F.F"


def test_a_name_must_be_hashable_and_what_names_a_function():
    pipe = Pipeline(DummyUNet())
    apply_deepcache(pipe, DeepCacheConfig(2), slot_key=lambda args, kwargs: [1])
    with pytest.raises(TypeError, match=r"slot_key must return a hashable value, got \[1\]"):
        pipe.call(1, 0)
    with pytest.raises(TypeError, match="slot_key must be a function of a call's arguments, got 3"):
        apply_deepcache(pipe, DeepCacheConfig(2), slot_key=3)
