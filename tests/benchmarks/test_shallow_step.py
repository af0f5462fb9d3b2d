"""The pieces of the experiment on the shallow step that can be wrong."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness.denoising_run import BarePipe, ddim
from benchmarks.harness.tiny_unets import TINY_UNETS
from benchmarks.shallow_step import (
    BOTH,
    CONVOLUTION,
    PARTS,
    PLAIN,
    PREDICTION,
    SELF,
    TRANSFORMER,
    Parts,
    Variant,
    cells,
    gain,
    multiply_accumulates,
    profile,
)
from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
from DeepCache.engine.cost import count_costs
from DeepCache.schedule import pattern_of

STEPS = 7
SAMPLES = torch.randn(STEPS, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(1, 2, 1, 1, 1)
TEXT = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def unet():
    return TINY_UNETS["stable-diffusion"].seeded()


def attention(unet, name="attn1"):
    return getattr(unet.up_blocks[-1].attentions[-1].transformer_blocks[0], name)


@torch.no_grad()
def run(unet, variant=PLAIN, interval=3, forecast="linear", kept=None):
    """The outputs of a trajectory."""
    pipe = BarePipe(unet, ddim(STEPS))
    config = DeepCacheConfig(interval, forecast=forecast, guidance_reuse=variant.guidance_reuse)
    apply_deepcache(pipe, config)
    parts = Parts(unet, config.steps(STEPS), variant.parts if kept is None else kept)
    parts.variant = variant
    outputs = [
        unet(sample, timestep, TEXT).sample for sample, timestep in zip(SAMPLES, pipe.scheduler.timesteps, strict=True)
    ]
    parts.remove()
    remove_deepcache(pipe)
    return outputs


def noted(module):
    """What comes out of a module from now on."""
    outputs = []
    module.register_forward_hook(lambda module, args, output: outputs.append(output.clone()))
    return outputs


def same(one, other):
    return all(map(torch.equal, one, other))


def test_attention_that_is_continued_does_not_run_on_shallow_steps(unet):
    queries = [noted(attention(unet, name).to_q) for name in ("attn1", "attn2")]
    run(unet, Variant(SELF))
    assert list(map(len, queries)) == [3, 7]
    run(unet, Variant(BOTH))
    assert list(map(len, queries)) == [6, 10]
    run(unet, Variant(TRANSFORMER))
    assert list(map(len, queries)) == [9, 13]


def test_without_shallow_steps_nothing_changes(unet):
    plain = [
        unet(sample, timestep, TEXT).sample for sample, timestep in zip(SAMPLES, ddim(STEPS).timesteps, strict=True)
    ]
    for part in PARTS:
        assert same(run(unet, Variant((part,)), interval=1), plain)


def test_what_is_kept_for_other_variants_changes_nothing(unet):
    assert same(run(unet, PLAIN, kept=PARTS), run(unet, PLAIN, kept=()))
    assert not any("forward" in vars(module) for module in unet.modules())


def test_re_use_takes_the_output_of_the_last_full_step(unet):
    outputs = noted(attention(unet))
    run(unet, Variant(SELF, "none"))
    assert all(torch.equal(outputs[number], outputs[number - number % 3]) for number in range(STEPS))
    assert not torch.equal(outputs[0], outputs[3])


def test_a_forecast_goes_on_along_the_last_two_full_steps(unet):
    outputs = noted(attention(unet))
    run(unet, Variant(SELF))
    assert torch.equal(outputs[2], outputs[0])
    torch.testing.assert_close(outputs[5], outputs[3] + (outputs[3] - outputs[0]) * 2 / 3)


def test_with_guidance_reuse_it_is_that_of_the_half_with_the_prompt(unet):
    outputs = noted(attention(unet))
    run(unet, Variant(SELF, "none", guidance_reuse=True))
    assert torch.equal(outputs[4], outputs[3][1:])


@pytest.mark.parametrize(
    "variant", [Variant(SELF), Variant(CONVOLUTION), Variant(PREDICTION)], ids=lambda each: each.name
)
def test_a_second_trajectory_knows_nothing_of_the_first(unet, variant):
    pipe = BarePipe(unet, ddim(STEPS))
    config = DeepCacheConfig(3)
    apply_deepcache(pipe, config)
    parts = Parts(unet, config.steps(STEPS), variant.parts)
    parts.variant = variant
    with torch.no_grad():
        first, second = (
            [
                unet(sample, timestep, TEXT).sample
                for sample, timestep in zip(SAMPLES, pipe.scheduler.timesteps, strict=True)
            ]
            for _ in range(2)
        )
    assert same(first, second)


def test_the_split_convolution_is_the_same_where_the_deep_feature_is_re_used(unet):
    split, plain = (run(unet, Variant(parts, "none"), forecast="none") for parts in (CONVOLUTION, ()))
    torch.testing.assert_close(split, plain)


def test_a_forecast_of_the_prediction_is_worked_out_from_those_of_full_steps(unet):
    outputs = run(unet, Variant(PREDICTION))
    torch.testing.assert_close(outputs[4], outputs[3] + (outputs[3] - outputs[0]) / 3)


def test_steps_are_counted_as_the_engine_counts_them(unet):
    config = DeepCacheConfig(3)
    parts_pattern = pattern_of(config.steps(STEPS))
    pipe = BarePipe(unet, ddim(STEPS))
    engine = apply_deepcache(pipe, config)
    parts = Parts(unet, config.steps(STEPS), ())
    seen = []
    unet.register_forward_hook(lambda *_: seen.append(parts.step))
    with torch.no_grad():
        for sample, timestep in zip(SAMPLES, pipe.scheduler.timesteps, strict=True):
            unet(sample, timestep, TEXT)
    assert pattern_of(seen) == parts_pattern == engine.stats.pattern


def test_multiply_accumulates_are_those_of_the_engine_less_what_is_left_out(unet):
    shares = multiply_accumulates(unet.config, 8)
    text = torch.zeros(2, 77, unet.config.cross_attention_dim)
    costs = count_costs(unet, (torch.zeros(2, 4, 8, 8), 0, text), {})
    assert shares["plain"] == pytest.approx(costs.share(0))
    assert shares["guidance reuse"] == pytest.approx(costs.share(0) / 2)
    # Of 64 tokens and 8 channels, each a pair: four projections, and two products of all with all.
    left_out = 2 * (4 * 64 * 8 * 8 + 2 * 64 * 64 * 8)
    assert shares["self-attention forecast"] == pytest.approx(costs.share(0) - left_out / costs.full)


def test_a_profile_gives_every_moment_to_one_kind(unet):
    readings = iter(range(10_000))
    (spent,) = profile(unet, 8, lambda: float(next(readings)), 1)
    # Each reading is one after the one before it.
    assert sum(spent.values()) == next(readings) - 1
    assert {"self-attention, products", "ResNet, convolutions", "norms", "other"} <= spent.keys()


def test_the_gain_is_that_over_the_line_between_the_neighbours_on_the_front():
    def cell(cost, *values):
        return {"time": cost, "psnr": {"mean": sum(values) / len(values), "values": list(values)}}

    settings = [cell(0.2, 40.0, 44.0), cell(0.4, 50.0, 50.0), cell(0.3, 10.0, 10.0)]
    assert gain(cell(0.3, 47.0, 47.0), settings, "time")["mean"] == pytest.approx(1.0)
    assert gain(cell(0.1, 47.0, 47.0), settings, "time") is None


def test_no_cell_is_measured_twice():
    every = list(cells())
    assert len(set(every)) == len(every)
