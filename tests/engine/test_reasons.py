"""Reasons of steps that are full although not scheduled."""

from __future__ import annotations

import pytest
import torch

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.schedule import Schedule, Step
from tests.engine.dummy_unet import DummyUNet, Pipeline


class Never(Schedule):
    kind = "never"
    branches = (0,)

    def step(self, number, steps):
        return Step(False)


NOT_YET_KNOWN = "not known yet which call of the step before it continues"


@pytest.mark.parametrize(
    ("settings", "calls", "pattern", "reasons"),
    [
        pytest.param({}, [(step, 1) for step in range(7)], "F..F..F", (), id="as scheduled"),
        pytest.param(
            {"schedule": Never()}, [(0, 1), (1, 1), (2, 1)], "F..", ((0, "first of the run"),), id="the first step"
        ),
        pytest.param(
            {}, [(0, 1), (1, [1, 1]), (2, [1, 1])], "FF.", ((1, "other shape, dtype or device"),), id="another shape"
        ),
        pytest.param(
            {},
            [(0, 1), (1, 1), (2, 1), (4, 1), (5, 1)],
            "F..F.",
            ((4, "the pipeline omitted steps before it"),),
            id="an omitted full step",
        ),
        pytest.param(
            {},
            [(0, 1), (2, 1), (4, 1), (6, 1)],
            "FFFF",
            ((2, "the pipeline omitted steps before it"), (4, "replaces a full step that was omitted")),
            id="every second step omitted",
        ),
        pytest.param(
            {},
            [(0, 1), (1, 1), (1, 2), (2, 1), (2, 2)],
            "FFF",
            ((1, "first call of its slot"), (2, NOT_YET_KNOWN)),
            id="a new call during the run",
        ),
    ],
)
def test_unscheduled_full_steps_have_reasons(settings, calls, pattern, reasons):
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, DeepCacheConfig(**{"cache_interval": 3, "forecast": "none"} | settings))
    for step, noisy in calls:
        pipe.unet(torch.as_tensor(noisy, dtype=torch.float).reshape(-1), pipe.scheduler.timesteps[step])
    assert (engine.stats.pattern, engine.stats.reasons) == (pattern, reasons)
    assert ("not scheduled" in str(engine.stats)) == bool(reasons)


def test_reasons_are_shown_with_their_steps():
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, DeepCacheConfig(3, forecast="none"))
    for step in range(5):
        pipe.unet(torch.ones(1 + step), pipe.scheduler.timesteps[step])
    assert "full though not scheduled, other shape, dtype or device: step 1, 2, 4" in str(engine.stats)


def test_slots_may_be_named():
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(
        pipe, DeepCacheConfig(4, forecast="none"), slot_key=lambda args, kwargs: float(args[0]) >= 100
    )
    # The order of the two calls changes from step to step, and the second is alone at the end.
    found = [
        [pipe.call(1, 0), pipe.call(100, 0)],
        [pipe.call(101, 1), pipe.call(2, 1)],
        [pipe.call(102, 2)],
    ]
    # A shallow step adds its skip connection to the feature of its slot: 23 + 9 x and 23 x + timestep.
    feature = found[0][0] - 1, found[0][1] - 100
    assert found[1] == [feature[1] + 101, feature[0] + 2]
    assert found[2] == [feature[1] + 102]
    assert engine.stats.pattern == "F.."


def test_calls_of_one_name_are_distinguished_by_their_order():
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, DeepCacheConfig(2, forecast="linear"), slot_key=lambda args, kwargs: "all")
    named = Pipeline(DummyUNet())
    apply_deepcache(named, DeepCacheConfig(2, forecast="linear"), slot_key=lambda args, kwargs: float(args[0]))
    for step in range(7):
        assert [pipe.call(1 + call, step) for call in range(2)] == [named.call(1 + call, step) for call in range(2)]
    assert engine.stats.pattern == "F.F.F.F"


def test_a_name_must_be_hashable_and_slot_key_a_function():
    pipe = Pipeline(DummyUNet())
    apply_deepcache(pipe, DeepCacheConfig(2), slot_key=lambda args, kwargs: [1])
    with pytest.raises(TypeError, match=r"slot_key must return a hashable value, got \[1\]"):
        pipe.call(1, 0)
    with pytest.raises(TypeError, match="slot_key must be a function of a call's arguments, got 3"):
        apply_deepcache(pipe, DeepCacheConfig(2), slot_key=3)
