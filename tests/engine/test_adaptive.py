"""Full steps that are decided during a run, computed by hand; no decision waits for a layer."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.engine import error_growth
from DeepCache.engine.error_growth import ErrorGrowth, relative_error
from DeepCache.schedule import AdaptiveSchedule
from tests.engine.dummy_unet import DummyUNet, Pipeline
from tests.engine.no_transfers import NoTransfers
from tests.engine.tiny_pipeline import generate, tiny_pipeline

pytestmark = pytest.mark.usefixtures("nothing_is_counted")


def config(interval=8, threshold=0.035, forecast="none", between="skipped"):
    return DeepCacheConfig(interval, skip_mode="adaptive", threshold=threshold, forecast=forecast, between=between)


def pipeline(steps=20):
    """Its timesteps are all 0, and are distinguished by their positions: the U-Net returns 23 noisy."""
    return Pipeline(DummyUNet(), (0,) * steps)


def run(pipe, noisy, steps=20):
    return [pipe.call(noisy(step), step) for step in range(steps)]


# The input moves by 1 per step, from 100. Re-use from step a has an error of (b - a) / (100 + b) at step b, and a step
# may read the errors up to the last step but one. With a threshold of 0.035:
#   step 2   nothing is known
#   step 6   1/102 of step 2, times 4
#   step 10  (4/106) / 4 of step 6, times 4; step 8 is the first that reads it
#   step 14  (4/110) / 4, times 4
#   step 18  (4/114) / 4, times 4 = 0.0351
BY_HAND = "FFF---F---F---F---FF"


@pytest.mark.parametrize("between", ["skipped", "shallow"])
def test_by_hand(between):
    pipe = pipeline()
    # Both the prediction and the deep feature are multiples of the input.
    engine = apply_deepcache(pipe, config(between=between))
    found = run(pipe, lambda step: 100.0 + step)
    assert engine.stats.pattern == BY_HAND.replace("-", "-" if between == "skipped" else ".")
    if between == "skipped":
        last_full = [max(full for full, sign in enumerate(BY_HAND[: step + 1]) if sign == "F") for step in range(20)]
        assert found == [23 * (100.0 + step) for step in last_full]


def test_alternating_steps_are_counted_from_the_last_full_one():
    pipe = pipeline()
    engine = apply_deepcache(pipe, config(between="alternating"))
    run(pipe, lambda step: 100.0 + step)
    assert engine.stats.pattern == "FFF.-.F.-.F.-.F.-.FF"


def test_an_input_that_moves_faster_has_more_full_steps():
    pipe = pipeline()
    engine = apply_deepcache(pipe, config(threshold=0.08))
    run(pipe, lambda step: 100.0 + step if step < 8 else 107.0 + 3 * (step - 7))
    # At step 9 the error is 1/102 per unit, and the input has moved by 5 and 3, and another 3 for the step's
    # own move; later 12/113 at step 13 and 12/125 at step 17 are the first beyond 0.08.
    assert engine.stats.pattern == "FFF------F---F---F-F"


@pytest.mark.parametrize("between", ["skipped", "shallow", "alternating"])
@pytest.mark.parametrize("forecast", ["none", "linear", "limited"])
def test_an_exact_forecast_is_used_for_the_interval_and_no_longer(between, forecast):
    pipe = pipeline()
    engine = apply_deepcache(pipe, config(5, 1e9, forecast, between))
    run(pipe, lambda step: 100.0 + step)
    assert [step for step, sign in enumerate(engine.stats.pattern) if sign == "F"] == [0, 1, 2, 7, 12, 17, 19]


@pytest.mark.parametrize("steps", [1, 2, 3, 12, 25, 40])
@pytest.mark.parametrize("interval", [1, 2, 6])
def test_the_first_tenth_and_the_last_step_are_full_and_no_interval_is_longer(interval, steps):
    generator = torch.Generator().manual_seed(0)
    for threshold in (1e-6, 0.3, 1.0, 1e6):
        pipe = pipeline(steps)
        engine = apply_deepcache(pipe, config(interval, threshold, "limited"))
        walk = torch.randn(steps, generator=generator).cumsum(0)
        run(pipe, lambda step, walk=walk: walk[step].item(), steps)
        pattern = engine.stats.pattern
        assert pattern.startswith("F" * min(max(2, -(-steps // 10)), steps))
        assert pattern.endswith("F")
        assert max(map(len, pattern.split("F"))) < interval
        assert threshold > 1e-6 or set(pattern) == {"F"}


def test_the_same_run_has_the_same_steps_and_nothing_of_one_reaches_the_next():
    pipe = pipeline()
    engine = apply_deepcache(pipe, config())
    first = run(pipe, lambda step: 100.0 + step)
    run(pipe, lambda step: 1.0 + step**2)
    assert engine.stats.pattern != BY_HAND
    assert run(pipe, lambda step: 100.0 + step) == first
    assert engine.stats.pattern == BY_HAND
    engine.end_run()
    assert engine._caches["unet"]._latest.planner._growth._last_full == 0


def test_every_call_of_a_step_follows_the_first_and_has_its_own_forecast():
    pipe = pipeline()
    engine = apply_deepcache(
        pipe,
        config(forecast="linear", threshold=1e9, interval=4),
        slot_key=lambda args, kwargs: float(args[0]) >= 1000,
    )
    found = []
    for step in range(20):
        # The input of the second call is ignored.
        found.append((pipe.call(100 + step, step), pipe.call(1000 + 50 * step, step)))
    assert engine.stats.pattern == BY_HAND
    # After the second full step a line is exact for both.
    assert found[2:] == [(23 * (100 + step), 23 * (1000 + 50 * step)) for step in range(2, 20)]


def test_a_batch_that_changes_during_a_run_starts_again():
    for between in ("shallow", "skipped", "alternating"):
        pipe = pipeline()
        engine = apply_deepcache(pipe, config(4, 1e9, "limited", between))
        for step, timestep in enumerate(pipe.scheduler.timesteps):
            # Guidance is disabled halfway.
            prediction = pipe.unet(torch.full((2 if step < 9 else 1,), 100.0 + step), timestep)[0]
            if step in (9, 19):
                assert prediction.tolist() == [23 * (100 + step)]
        assert [step for step, sign in enumerate(engine.stats.pattern) if sign == "F"][:5] == [0, 1, 2, 6, 9]


def test_a_decision_reads_nothing_of_the_current_or_the_last_step(monkeypatch):
    deciding, reads = [None], []
    decide, note_full, read = ErrorGrowth._decide, ErrorGrowth.note_full, error_growth._Late.read

    def decide_at(growth, step):
        deciding[0] = step
        return decide(growth, step)

    def note_and_mark(growth, step, error):
        known = len(growth._errors)
        note_full(growth, step, error)
        for _, _, late in growth._errors[known:]:
            late.of_layers = step

    def note_read(late):
        reads.append((deciding[0], getattr(late, "of_layers", None)))
        return read(late)

    monkeypatch.setattr(ErrorGrowth, "_decide", decide_at)
    monkeypatch.setattr(ErrorGrowth, "note_full", note_and_mark)
    monkeypatch.setattr(error_growth._Late, "read", note_read)
    for between in ("shallow", "skipped", "alternating"):
        pipe = pipeline()
        reads.clear()
        apply_deepcache(pipe, config(4, 0.035, "limited", between))
        run(pipe, lambda step: 100.0 + step + 0.1 * step**2)
        of_layers = [(step, made) for step, made in reads if made is not None]
        assert of_layers
        assert all(made <= step - 2 for step, made in of_layers)


def test_a_run_reads_only_numbers_that_have_arrived_from_the_device(monkeypatch):
    read = error_growth._Late.read

    def read_arrived(late):
        with _disable_current_modes():
            return read(late)

    monkeypatch.setattr(error_growth._Late, "read", read_arrived)
    for between in ("shallow", "skipped", "alternating"):
        pipe = pipeline()
        engine = apply_deepcache(pipe, config(between=between))
        noisy = [torch.full((1,), 100.0 + step) for step in range(20)]
        with monkeypatch.context() as patch, NoTransfers(patch):
            for sample, timestep in zip(noisy, pipe.scheduler.timesteps, strict=True):
                pipe.unet(sample, timestep)
        assert [sign == "F" for sign in engine.stats.pattern] == [sign == "F" for sign in BY_HAND]


def test_the_number_of_steps_must_be_known():
    pipe = Pipeline(DummyUNet())
    del pipe.scheduler.timesteps
    apply_deepcache(pipe, config())
    with pytest.raises(ValueError, match="depends on the number of steps, which is unknown"):
        pipe.unet(torch.ones(1), 10)


def test_the_error_is_relative_and_summed_in_float32():
    forecast, truth = torch.full((4096,), 300.0).half(), torch.full((4096,), 200.0).half()
    assert relative_error(forecast, truth).item() == pytest.approx(0.5)
    assert relative_error(torch.zeros(3), torch.zeros(3)) == 0


def test_distances_are_those_of_the_first_call():
    growth = ErrorGrowth(AdaptiveSchedule(threshold=9.9, interval=50))
    for step in range(6):
        growth.note_input(step, torch.tensor([3.0 * step, 4.0 * step]))
        growth.note_input(step, torch.full((2,), 1e6))
    growth.note_full(1, torch.tensor(2.0))
    # 2 a step, of which each has moved 5: 8 at step 5, 10 at step 6.
    assert [growth.is_due(step) for step in (3, 4, 5, 6)] == [False, False, False, True]


@pytest.mark.parametrize("between", ["shallow", "skipped", "alternating"])
def test_on_a_pipeline_of_diffusers(between):
    found = []
    for _ in range(2):
        pipe = tiny_pipeline()
        engine = apply_deepcache(pipe, config(4, 0.05, "limited", between))
        found.append((generate(pipe, 10), engine.stats.pattern))
        assert torch.isfinite(found[-1][0]).all()
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert found[0][1].startswith("FF")
    assert found[0][1].endswith("F")
