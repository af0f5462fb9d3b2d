"""Forecasts: polynomials by hand, and on U-Nets with known outputs."""

from __future__ import annotations

import pytest
import torch

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.engine.forecast import Forecast
from DeepCache.schedule import BranchSchedule, ExplicitSchedule, Step, StepSchedule, UniformSchedule
from tests.engine.dummy_unet import DummyUNet, Pipeline
from tests.engine.slots import kept_slots
from tests.engine.tiny_pipeline import generate, tiny_pipeline, tiny_unet
from tests.releases import COUNTS

RULES = ("none", "linear", "quadratic")
UNEVEN = [0, 1, 3, 4, 9, 11]
COEFFICIENTS = torch.tensor([[3.0, -5.0, 2.0], [0.5, 0.25, -8.0], [-1.0, 0.0, 7.0], [0.0, 4.0, 1.0]])


def polynomial(order, place, dtype=torch.float64):
    """A polynomial of the order for each of four elements, with values that are exact in float64."""
    quadratic, linear, constant = COEFFICIENTS.to(torch.float64).unbind(1)
    return (quadratic * place**2 * (order == 2) + linear * place + constant).to(dtype)


def forecast_of(order, places, *, highest=None, dtype=torch.float64):
    forecast = Forecast(order if highest is None else highest)
    for place in places:
        forecast.add(place, polynomial(order, place, dtype))
    return forecast


@pytest.mark.parametrize(("order", "values"), [(1, 2), (1, 3), (1, 6), (2, 3), (2, 4), (2, 6)])
def test_a_polynomial_of_the_order_is_continued_exactly(order, values):
    forecast = forecast_of(order, UNEVEN[:values])
    for place in (UNEVEN[values - 1], 12, 15, 40):
        assert torch.equal(forecast.at(place, RULES[order]), polynomial(order, place))


def test_a_lower_polynomial_is_continued_exactly_by_a_higher_order():
    forecast = forecast_of(1, UNEVEN, highest=2)
    assert torch.equal(forecast.at(20, "quadratic"), polynomial(1, 20))


@pytest.mark.parametrize("rule", [*RULES, "limited"])
def test_the_forecast_goes_through_the_latest_value(rule):
    values = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    forecast = Forecast(2)
    for place, value in zip(UNEVEN, values, strict=False):
        forecast.add(place, value)
        assert torch.equal(forecast.at(place, rule), value)


def test_it_goes_through_the_values_before_the_latest_too():
    places, values = (2, 3, 7), (torch.tensor(4.0), torch.tensor(-1.0), torch.tensor(11.0))
    forecast = Forecast(2)
    for place, value in zip(places, values, strict=True):
        forecast.add(place, value)
    for place, value in zip(places, values, strict=True):
        assert torch.equal(forecast.at(place, "quadratic"), value)


def test_values_computed_by_hand():
    forecast = Forecast(2)
    for place, value in ((0, 1.0), (2, 5.0), (3, 4.0)):
        forecast.add(place, torch.tensor(value))
    # d₁ = (4 - 5) / 1 = -1; before it (5 - 1) / 2 = 2; d₂ = (-1 - 2) / 3 = -1.
    assert forecast.at(5, "quadratic") == 4 + 2 * -1 + 2 * 3 * -1
    assert forecast.at(5, "linear") == 4 + 2 * -1
    assert forecast.at(5) == 4
    # Another value: d₁ = (8 - 4) / 2 = 2, d₂ = (2 - -1) / (5 - 2) = 1.
    forecast.add(5, torch.tensor(8.0))
    assert forecast.at(6, "quadratic") == 8 + 1 * 2 + 1 * 3 * 1


def test_with_fewer_values_than_the_order_needs_the_order_is_lower():
    forecast = Forecast(2)
    forecast.add(0, torch.tensor(3.0))
    assert all(forecast.at(9, rule) == 3 for rule in (*RULES, "limited"))
    forecast.add(2, torch.tensor(7.0))
    assert all(forecast.at(9, rule) == 3 + 9 * 2 for rule in ("linear", "quadratic", "limited"))
    forecast.add(3, torch.tensor(12.0))
    # As x² + 3 would be: the second value is that of 2.
    assert forecast.at(9, "quadratic") == 9**2 + 3


@pytest.mark.parametrize("highest", [1, 2])
def test_a_lower_order_can_be_requested(highest):
    forecast = forecast_of(highest, UNEVEN)
    for order in range(highest):
        alone = forecast_of(highest, UNEVEN, highest=order)
        assert torch.equal(forecast.at(20, RULES[order]), alone.at(20, RULES[order]))
    assert torch.equal(forecast.at(20, "none"), polynomial(highest, UNEVEN[-1]))


@pytest.mark.parametrize("rule", [*RULES, "limited"])
def test_halves_equal_those_of_the_whole(rule):
    forecast = Forecast(2)
    for place in UNEVEN:
        forecast.add(place, torch.randn(4, 3, generator=torch.Generator().manual_seed(place)))
    whole = forecast.at(13, rule)
    assert torch.equal(forecast.at(13, rule, half=0), whole[:2])
    assert torch.equal(forecast.at(13, rule, half=1), whole[2:])


@pytest.mark.parametrize("order", [0, 1, 2])
def test_one_tensor_is_kept_for_each_order(order):
    forecast = Forecast(order)
    assert forecast.bytes == 0
    for count, place in enumerate(UNEVEN, start=1):
        forecast.add(place, polynomial(2, place))
        assert forecast.bytes == min(count, order + 1) * 4 * 8


@pytest.mark.parametrize("rule", [*RULES, "limited"])
def test_given_and_stored_values_are_not_changed(rule):
    values = [polynomial(2, place) for place in UNEVEN]
    forecast = Forecast(2)
    for place, value in zip(UNEVEN, values, strict=True):
        forecast.add(place, value)
        first = forecast.at(30, rule).clone()
        assert torch.equal(forecast.at(30, rule), first)
        forecast.at(30, rule, half=1)
        assert torch.equal(forecast.at(30, rule), first)
    assert all(torch.equal(value, polynomial(2, place)) for place, value in zip(UNEVEN, values, strict=True))


def test_of_order_0_it_is_the_latest_tensor_itself():
    value = torch.ones(2)
    forecast = Forecast(0)
    forecast.add(0, torch.zeros(2))
    forecast.add(1, value)
    assert forecast.at(7) is value


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_dtype_is_kept_and_the_forecast_is_correct_up_to_rounding(dtype, order):
    forecast = forecast_of(order, UNEVEN[:4], dtype=dtype)
    found = forecast.at(6, RULES[order])
    assert found.dtype is dtype
    # The largest intermediate value, and its rounding error in a few operations.
    largest = max(polynomial(order, place).abs().max() for place in (*UNEVEN[:4], 6))
    expected = polynomial(order, 6 if order else UNEVEN[3])
    assert (found.double() - expected).abs().max() <= 8 * torch.finfo(dtype).eps * largest


def squares(steps):
    return tuple(step * step for step in range(steps))


def outputs(forecast, schedule, timesteps=(10, 20, 30, 40, 50, 60, 70, 80), noisy=lambda step: 1.0):
    """The outputs of the dummy U-Net at every step, without DeepCache and with it."""
    plain, cached = Pipeline(DummyUNet(), timesteps), Pipeline(DummyUNet(), timesteps)
    engine = apply_deepcache(cached, DeepCacheConfig(forecast=forecast, schedule=schedule))
    steps = range(len(timesteps))
    return (
        [plain.call(noisy(step), step) for step in steps],
        [cached.call(noisy(step), step) for step in steps],
        engine,
    )


# The U-Net returns 23 noisy + timestep; the deep feature at branch 0 is 22 noisy + timestep.
def test_without_a_forecast_the_latest_deep_feature_is_used_again():
    plain, cached, _ = outputs("none", UniformSchedule(3))
    assert plain == [33, 43, 53, 63, 73, 83, 93, 103]
    assert cached == [33, 33, 33, 63, 63, 63, 93, 93]


@pytest.mark.parametrize("noisy", [lambda step: 1.0, lambda step: 2.0 + 3 * step], ids=["fixed", "rising"])
@pytest.mark.parametrize("branch", [0, 1, 2, 3])
def test_what_changes_linearly_is_exact_from_the_second_full_step_on(branch, noisy):
    plain, cached, engine = outputs("linear", UniformSchedule(3, branch), noisy=noisy)
    assert cached[3:] == plain[3:]
    assert engine.stats.pattern == "F..F..F."
    # Before that there is a single value, which is re-used.
    _, reused, _ = outputs("none", UniformSchedule(3, branch), noisy=noisy)
    assert cached[:3] == reused[:3]


@pytest.mark.parametrize("at", [(0, 1), (0, 2, 3), (0, 4, 5), (0, 1, 4, 6)])
def test_full_steps_can_be_uneven(at):
    plain, cached, engine = outputs("linear", ExplicitSchedule(at), noisy=float)
    assert cached[at[1] :] == plain[at[1] :]
    assert engine.stats.full_steps == len(at)


@pytest.mark.parametrize("at", [(0, 2, 4), (0, 1, 3), (0, 3, 4), (0, 1, 2, 5)])
def test_what_changes_quadratically_is_exact_from_the_third_full_step_on(at):
    plain, cached, _ = outputs("quadratic", ExplicitSchedule(at), squares(9), noisy=lambda step: 1.0 + step)
    assert cached[at[2] :] == plain[at[2] :]
    _, linear, _ = outputs("linear", ExplicitSchedule(at), squares(9), noisy=lambda step: 1.0 + step)
    assert cached[: at[2]] == linear[: at[2]]
    assert linear[at[2] + 1 :] != plain[at[2] + 1 :]


def test_each_step_can_have_its_own_order():
    each = (Step(True), Step(True), Step(True), Step(False), Step(False, 0, "linear"), Step(False, 0, "quadratic"))
    _, cached, engine = outputs("none", StepSchedule(each), squares(6))
    # 23 + the timestep: 4 re-used, 4 + 3 per step from step 2, 25.
    assert cached == [23, 24, 27, 23 + 4, 23 + 4 + 2 * 3, 23 + 25]
    assert engine.stats.bytes_kept == 3 * 4


def test_a_new_run_is_independent_of_the_one_before():
    pipe = Pipeline(DummyUNet())
    apply_deepcache(pipe, DeepCacheConfig(2, forecast="quadratic"))
    first = [pipe.call(1, step) for step in range(5)]
    assert first == [33, 33, 53, 63, 73]
    # The run before was of another image, and was interrupted: the second step may be its next.
    assert [pipe.call(5, step) for step in range(4)] == [value + 4 * 23 for value in (33, 43, 53, 63)]


@pytest.mark.parametrize("guidance_reuse", [False, True])
def test_one_image_does_not_affect_the_next(guidance_reuse):
    def pipeline():
        pipe = tiny_pipeline()
        apply_deepcache(pipe, DeepCacheConfig(2, forecast="linear", guidance_reuse=guidance_reuse))
        return pipe

    pipe = pipeline()
    first, second = generate(pipe, seed=1), generate(pipe, seed=2)
    assert torch.equal(first, generate(pipeline(), seed=1))
    assert torch.equal(second, generate(pipeline(), seed=2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    "change", [lambda noisy: noisy.expand(2), lambda noisy: noisy.double()], ids=["shape", "dtype"]
)
def test_a_sample_of_another_kind_during_a_run_starts_again(change):
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, DeepCacheConfig(3, forecast="linear"))

    def call(noisy, position):
        return pipe.unet(noisy, pipe.scheduler.timesteps[position])[0]

    noisy = torch.ones(1)
    assert [call(noisy, step).item() for step in range(5)] == [33, 33, 33, 63, 73]
    noisy = change(noisy)
    assert call(noisy, 5).tolist() == [83] * len(noisy)
    assert call(noisy, 6).tolist() == [93] * len(noisy)
    assert engine.stats.pattern == "F..F.FF"
    pipe.scheduler.timesteps = torch.arange(10, 90, 10)
    for step in range(4):
        call(torch.ones(1), step)
    assert [call(noisy, step)[0].item() for step in (4, 5)] == [73, 73]


def test_every_call_of_a_step_is_forecast_separately():
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, DeepCacheConfig(2, forecast="linear"))
    for step in range(7):
        found = pipe.call(1 + step, step), pipe.call(5 - 2 * step, step)
        if step != 1:
            timestep = 10 + 10 * step
            assert found == (23 * (1 + step) + timestep, 23 * (5 - 2 * step) + timestep)
    assert engine.stats.bytes_kept == 2 * 2 * 4


def test_a_replaced_full_step_counts_at_its_position():
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, DeepCacheConfig(3, forecast="linear"))
    found = [pipe.call(1, position) for position in (0, 2, 4, 6)]
    assert engine.stats.pattern == "FFFF"
    assert found == [33, 53, 73, 93]


@pytest.mark.parametrize(("forecast", "tensors"), [("none", 1), ("linear", 2), ("quadratic", 3)])
def test_memory_is_one_tensor_per_order_and_is_freed(forecast, tensors):
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, DeepCacheConfig(2, forecast=forecast))
    kept = []
    for step in range(7):
        pipe.call(1, step)
        kept.append(sum(stored.bytes for stored in kept_slots(engine)))
    full = [min(tensors, 1 + step // 2) * 4 for step in range(6)]
    assert kept == [*full, 0]
    assert engine.stats.bytes_kept == tensors * 4
    assert not kept_slots(engine)
    pipe.call(1, 0)
    assert kept_slots(engine)
    engine.end_run()
    assert not kept_slots(engine)


@pytest.mark.parametrize("forecast", ["none", "linear", "quadratic"])
@torch.no_grad()
def test_a_shallow_step_of_diffusers_unet_gets_the_forecast_deep_feature(forecast):
    """The deep feature of branch 0 is the first channels of the last layer's input."""
    unet = tiny_unet()
    pipe = Pipeline(unet, (900, 700, 500, 300, 100))
    entering = []
    unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(lambda module, args: entering.append(args[0][:, :-8]))
    apply_deepcache(pipe, DeepCacheConfig(schedule=ExplicitSchedule((0, 1, 3)), forecast=forecast))
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randn(2, 3, 8, generator=generator)
    for timestep in pipe.scheduler.timesteps:
        sample = torch.randn(2, 4, 8, 8, generator=generator)
        unet(sample, timestep, encoder_hidden_states=prompt)
    first, second, shallow, third, last = entering
    assert not torch.equal(first, second)
    if forecast == "none":
        assert torch.equal(shallow, second)
        assert torch.equal(last, third)
    else:
        torch.testing.assert_close(shallow, 2 * second - first)
        slope = (third - second) / 2
        curve = (slope - (second - first)) / 3 if forecast == "quadratic" else 0
        torch.testing.assert_close(last, third + slope + 3 * curve)


def test_without_forecasts_the_image_is_that_of_plain_caching():
    plain = UniformSchedule(3).steps(6)
    images = []
    for config in (
        DeepCacheConfig(3, forecast="none"),
        DeepCacheConfig(schedule=UniformSchedule(3), forecast="none"),
        DeepCacheConfig(schedule=StepSchedule(plain), forecast="linear"),
        # More is stored here, and not used.
        DeepCacheConfig(schedule=StepSchedule((*plain[:3], Step(True, forecast="quadratic"), *plain[4:]))),
    ):
        pipe = tiny_pipeline()
        apply_deepcache(pipe, config)
        images.append(generate(pipe))
    assert all(torch.equal(image, images[0]) for image in images[1:])


# Branch 0 runs only the last up layer; branch 1 one more layer on either side, and so on.
LAYERS = ("down 1", "down 2", "down 3", "mid", "up 3", "up 2", "up 1", "up 0")
RUN = {
    "F": LAYERS,
    "0": ("up 0",),
    "1": ("down 1", "up 1", "up 0"),
    "2": ("down 1", "down 2", "up 2", "up 1", "up 0"),
    "3": ("down 1", "down 2", "down 3", "up 3", "up 2", "up 1", "up 0"),
}


class TestSeveralBranches:
    def pipeline(self, config):
        pipe, ran = Pipeline(DummyUNet()), []
        first, second = pipe.unet.down_blocks
        down = [*first.layers, *first.downsamplers, *second.layers]
        up = [layer for block in pipe.unet.up_blocks for layer in block.layers]
        for name, module in zip(LAYERS, (*down, pipe.unet.mid_block, *up), strict=True):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
        return pipe, apply_deepcache(pipe, config), ran

    @pytest.mark.parametrize("forecast", ["none", "linear"])
    def test_every_step_runs_the_layers_above_its_branch(self, forecast):
        schedule = BranchSchedule(UniformSchedule(5), after=(0, 2, 1, 3))
        pipe, engine, ran = self.pipeline(DeepCacheConfig(schedule=schedule, forecast=forecast))
        for step, sign in enumerate("F0213F0"):
            ran.clear()
            pipe.call(1, step)
            assert tuple(ran) == RUN[sign]
        stats = engine.stats
        assert stats.pattern == "F0213F0"
        assert (stats.full_steps, stats.shallow_steps) == (2, 5)

    def test_a_deeper_shallow_step_renews_the_deep_features_above_it(self):
        schedule = StepSchedule((Step(True), *(Step(False, branch) for branch in (2, 0, 1, 3, 2, 0))))
        pipe, engine, _ = self.pipeline(DeepCacheConfig(schedule=schedule))
        timestep = 10
        assert pipe.call(1, 0) == 23 + timestep
        # The 16 below the third skip connection of the full step, and 4 + 2 + 1 of this step.
        assert pipe.call(10, 1) == 16 + timestep + 70
        # The last one of this step, 4 + 2 of the step before.
        assert pipe.call(100, 2) == 16 + timestep + 60 + 100
        # Step 2 was at a shallower branch and renewed nothing below it.
        assert pipe.call(1000, 3) == 16 + timestep + 40 + 3000
        assert pipe.call(1, 4) == 8 + timestep + 8 + 4 + 2 + 1
        assert pipe.call(10, 5) == 16 + timestep + 70
        assert pipe.call(100, 6) == 16 + timestep + 60 + 100
        assert engine.stats.pattern == "F201320"

    def test_features_renewed_by_a_shallow_step_are_forecast_too(self):
        each = (Step(True), Step(False, 2, "linear"), Step(False, 0, "linear"), Step(False, 2, "linear"))
        pipe, _, _ = self.pipeline(DeepCacheConfig(schedule=StepSchedule(each)))
        pipe.scheduler.timesteps = torch.arange(10, 50, 10)
        assert pipe.call(1, 0) == 33
        # Branch 2 has one value.
        assert pipe.call(2, 1) == 16 + 10 + 7 * 2
        # Branch 0 has 22 + 10 = 32 and 16 + 10 + 6 · 2 = 38, so 44 is next.
        assert pipe.call(3, 2) == 44 + 3
        assert pipe.call(4, 3) == 16 + 10 + 7 * 4

    def test_a_deep_feature_is_stored_for_each_branch(self):
        for forecast, tensors in (("none", 1), ("linear", 2)):
            schedule = BranchSchedule(UniformSchedule(3), after=(0, 2))
            pipe, engine, _ = self.pipeline(DeepCacheConfig(schedule=schedule, forecast=forecast))
            for step in range(7):
                pipe.call(1, step)
            assert engine.stats.bytes_kept == 2 * tensors * 4
            assert not kept_slots(engine)

    def test_one_branch_for_all_equals_the_plain_setting(self):
        images = []
        for config in (
            DeepCacheConfig(3, cache_branch_id=2),
            DeepCacheConfig(schedule=BranchSchedule(UniformSchedule(3), after=(2,))),
        ):
            pipe = tiny_pipeline()
            engine = apply_deepcache(pipe, config)
            images.append(generate(pipe))
            assert engine.stats.pattern == "F..F.."
        assert torch.equal(*images)

    @COUNTS
    def test_the_cost_is_that_of_the_branches(self):
        pipe = tiny_pipeline()
        shares = {}
        for branches in ((0,), (3,), (0, 3)):
            engine = apply_deepcache(pipe, DeepCacheConfig(schedule=BranchSchedule(UniformSchedule(3), branches)))
            generate(pipe)
            shares[branches] = engine.stats.mac_share
        assert engine.stats.pattern == "F03F03"
        # Half of the shallow steps are at either branch.
        assert shares[0, 3] == pytest.approx((shares[0,] + shares[3,]) / 2)
        assert shares[0,] < shares[3,] < 1

    def test_a_branch_that_is_too_deep_is_refused(self):
        schedule = BranchSchedule(UniformSchedule(3), after=(0, 4))
        with pytest.raises(ValueError, match=r"must be between 0 and 3 for this DummyUNet, got 4"):
            apply_deepcache(Pipeline(DummyUNet()), DeepCacheConfig(schedule=schedule))
