import json

import pytest
import torch

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.metrics import psnr, ssim
from DeepCache.schedule import Step, StepSchedule
from DeepCache.tune.evaluation import Evaluations
from tests.tune.small_pipeline import PROMPTS, sampler_of, small_pipeline

STEPS = 4
SHALLOW = StepSchedule((Step(True), Step(False), Step(True), Step(False, 0, "linear", guidance_reuse=True)))
OTHER = StepSchedule((Step(True), Step(False), Step(True), Step(False)))


class Bench:
    """An evaluation with a count of U-Net calls."""

    def __init__(self, path, name="tuning", prompts=PROMPTS[:2], batch=2):
        self.pipe = small_pipeline()
        self.sampler = sampler_of(self.pipe, prompts, STEPS, batch=batch)
        self.path = path
        self.work = []
        self.calls = 0
        self.pipe.unet.register_forward_pre_hook(self.count)
        self.again(name)

    def again(self, name="tuning"):
        self.evaluations = Evaluations(self.sampler, self.path, name, self.work.append)
        return self.evaluations

    def count(self, *_):
        self.calls += 1

    def take(self):
        """U-Net calls since the last `take`."""
        calls, self.calls = self.calls, 0
        return calls


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path / "evaluations.jsonl")


def test_each_setting_is_generated_once(bench):
    first = bench.evaluations.schedule(SHALLOW)
    # Without DeepCache, and with it.
    assert bench.take() == 2 * STEPS
    assert bench.evaluations.schedule(SHALLOW) == first
    assert bench.take() == 0
    assert bench.evaluations.schedule(OTHER) != first
    assert bench.take() == STEPS
    fewer = bench.evaluations.fewer_steps(3)
    assert bench.take() == 3
    assert bench.evaluations.fewer_steps(3) == fewer
    assert bench.take() == 0


def test_settings_in_the_file_are_not_generated_again(bench):
    expected = bench.evaluations.schedule(SHALLOW), bench.evaluations.fewer_steps(2)
    bench.take()
    again = bench.again()
    assert again.known(SHALLOW)
    assert not again.known(OTHER)
    assert (again.schedule(SHALLOW), again.fewer_steps(2)) == expected
    assert bench.take() == 0


def test_one_file_keeps_sets_of_prompts_separate(bench):
    tuning = bench.evaluations.schedule(SHALLOW)
    held_out = Bench(bench.path, "held out", PROMPTS[2:])
    assert not held_out.evaluations.known(SHALLOW)
    assert held_out.evaluations.schedule(SHALLOW).psnr != tuning.psnr
    assert bench.again().schedule(SHALLOW) == tuning
    assert len(bench.path.read_text(encoding="utf-8").splitlines()) == 2 + 2


def test_an_unfinished_last_line_is_ignored(bench):
    expected = bench.evaluations.schedule(SHALLOW)
    bench.evaluations.schedule(OTHER)
    reference, whole, half = bench.path.read_text(encoding="utf-8").splitlines()
    bench.path.write_text(f"{reference}\n{whole}\n{half[:-9]}", encoding="utf-8")
    again = bench.again()
    assert again.known(SHALLOW)
    assert not again.known(OTHER)
    assert again.schedule(SHALLOW) == expected


def test_measurements_after_an_unfinished_line_are_kept(bench):
    bench.path.write_text('{"prompts": "tun', encoding="utf-8")
    measured = bench.again().schedule(SHALLOW)
    assert bench.again().known(SHALLOW)
    assert bench.again().schedule(SHALLOW) == measured


def test_the_file_has_one_object_per_line(bench):
    measured = bench.evaluations.schedule(SHALLOW)
    _, line = bench.path.read_text(encoding="utf-8").splitlines()
    entry = json.loads(line)
    assert (entry["prompts"], entry["guidance"]) == ("tuning", 3)
    assert entry["measured"] == measured.__dict__


def test_cost_and_fidelity_are_those_of_a_run_with_the_schedule(bench):
    measured = bench.evaluations.schedule(SHALLOW)
    reference = bench.sampler.sample()
    assert torch.equal(bench.evaluations.reference, reference)
    engine = apply_deepcache(bench.pipe, DeepCacheConfig(schedule=SHALLOW))
    images = bench.sampler.sample()
    assert measured.cost == engine.stats.mac_share
    assert 0.5 < measured.cost < 1
    assert measured.psnr == pytest.approx(float(psnr(images, reference).mean()), rel=1e-6)
    assert measured.ssim == pytest.approx(float(ssim(images, reference).mean()), rel=1e-6)
    assert measured.seconds > 0


def test_every_prompt_counts_regardless_of_the_batch(tmp_path):
    measured = [
        Bench(tmp_path / f"{batch}.jsonl", prompts=PROMPTS, batch=batch).evaluations.schedule(SHALLOW)
        for batch in (2, 3)
    ]
    assert measured[0].cost == pytest.approx(measured[1].cost)
    assert measured[0].psnr == pytest.approx(measured[1].psnr, abs=0.1)


def test_identical_images_count_as_a_high_but_finite_psnr(bench):
    measured = bench.evaluations.schedule(StepSchedule((Step(True),) * STEPS))
    assert (measured.cost, measured.psnr) == (1, 120)
    assert measured.ssim == pytest.approx(1)


def test_only_generation_time_counts(bench, monkeypatch):
    import DeepCache.engine.stats as stats
    import DeepCache.tune.evaluation as evaluation

    now = 0.0
    count = stats.count_costs

    def slow_count(*arguments):
        nonlocal now
        now += 100
        return count(*arguments)

    monkeypatch.setattr(stats, "count_costs", slow_count)
    monkeypatch.setattr(evaluation, "perf_counter", lambda: now)
    assert bench.evaluations.schedule(SHALLOW).seconds < 100


def test_fewer_steps_cost_their_share(bench):
    measured = bench.evaluations.fewer_steps(3)
    assert measured.cost == 0.75
    images = bench.sampler.sample(3)
    assert measured.psnr == pytest.approx(float(psnr(images, bench.sampler.sample()).mean()), rel=1e-6)


def test_work_is_reported_as_a_share_of_a_run_without_deepcache(bench):
    measured = bench.evaluations.schedule(SHALLOW)
    bench.evaluations.fewer_steps(2)
    bench.evaluations.schedule(SHALLOW)
    assert bench.work == [1, measured.cost, 0.5]


def test_existing_reference_images_are_used(bench):
    images = bench.sampler.sample()
    bench.take()
    bench.evaluations.set_reference(images, 7.5)
    bench.evaluations.schedule(SHALLOW)
    assert bench.take() == STEPS
    assert bench.evaluations.seconds_of_reference == 7.5


def test_deepcache_is_removed_from_the_pipeline(bench):
    plain = bench.sampler.sample()
    bench.evaluations.schedule(SHALLOW)
    assert torch.equal(bench.sampler.sample(), plain)
    assert not bench.pipe.unet._forward_hooks


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_deepcache_is_removed_if_generation_fails(bench, error):
    plain = bench.evaluations.reference
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 2:
            raise error

    handle = bench.pipe.unet.conv_out.register_forward_pre_hook(fail)
    with pytest.raises(error):
        bench.evaluations.schedule(SHALLOW)
    handle.remove()
    assert not bench.pipe.unet._forward_hooks
    assert torch.equal(bench.sampler.sample(), plain)
    assert not bench.evaluations.known(SHALLOW)
    assert len(bench.path.read_text(encoding="utf-8").splitlines()) == 1


def test_a_model_whose_cost_cannot_be_counted_is_refused(bench, monkeypatch):
    import DeepCache.engine.stats as stats

    def fail(*_):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(stats, "count_costs", fail)
    with pytest.raises(
        ValueError, match="the cost of this model's steps cannot be counted: RuntimeError: no such thing"
    ):
        bench.evaluations.schedule(SHALLOW)
    assert not bench.pipe.unet._forward_hooks
