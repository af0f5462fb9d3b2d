import itertools
import math

import pytest
import torch

from DeepCache.schedule import Step, StepSchedule
from DeepCache.tune.best_schedules import best_schedules, predicted_error

STEPS, LONGEST, SHARE, BRANCH = 7, 3, 0.2, 2
PRICES = [10**exponent for exponent in (-9, -2, -1, -0.5, 0, 0.5, 1, 2, 9)]


def errors_of_segments(seed):
    """Random ones; those that cannot be measured are infinite, as `measure` leaves them."""
    generator = torch.Generator().manual_seed(seed)
    errors = torch.rand(STEPS, LONGEST + 2, LONGEST + 1, 2, generator=generator).double()
    errors *= torch.arange(LONGEST + 1).double().square()[:, None]
    for full in range(STEPS):
        errors[full, full + 1 :] = math.inf
        errors[full, :, STEPS - full :] = math.inf
    return errors


def all_made_of_segments(errors):
    """Every schedule made of segments, with its error and cost by hand."""
    for count in range(STEPS):
        for others in itertools.combinations(range(1, STEPS), count):
            full_steps = (0, *others)
            lengths = [following - full - 1 for full, following in itertools.pairwise((*full_steps, STEPS))]
            if max(lengths) > LONGEST:
                continue
            choices = [itertools.product(("none", "linear"), (False, True)) if length else [None] for length in lengths]
            for chosen in itertools.product(*map(tuple, choices)):
                each, error = [], 0.0
                for number, (full, length, choice) in enumerate(zip(full_steps, lengths, chosen, strict=True)):
                    each.append(Step(True))
                    if not length:
                        continue
                    forecast, reuse = choice
                    if not number and forecast == "linear":
                        error = math.inf
                    gap = full - full_steps[number - 1] if number and forecast == "linear" else 0
                    error += float(errors[full, gap, length, int(reuse)])
                    each += [Step(False, BRANCH, forecast, reuse)] * length
                if error < math.inf:
                    shares = [1 if step.full else SHARE / 2 if step.guidance_reuse else SHARE for step in each]
                    yield StepSchedule(tuple(each)), error, sum(shares) / STEPS


@pytest.fixture(scope="module")
def errors():
    return errors_of_segments(seed=0)


@pytest.fixture(scope="module")
def everything(errors):
    return list(all_made_of_segments(errors))


@pytest.mark.parametrize("seed", range(4))
def test_at_every_price_the_best_of_all_schedules_is_found(seed):
    errors = errors_of_segments(seed)
    everything = list(all_made_of_segments(errors))
    for price in PRICES:
        (found,) = best_schedules(errors, BRANCH, SHARE, [price])
        values = {schedule: error + price * cost for schedule, error, cost in everything}
        assert found.error + price * found.cost == pytest.approx(min(values.values()))
        assert values[found.schedule] == pytest.approx(min(values.values()))


def test_error_and_cost_equal_those_by_hand(errors, everything):
    by_hand = {schedule: (error, cost) for schedule, error, cost in everything}
    for found in best_schedules(errors, BRANCH, SHARE, PRICES):
        assert (found.error, found.cost) == pytest.approx(by_hand[found.schedule])
        assert predicted_error(errors, found.schedule) == pytest.approx(found.error)


def test_schedules_are_sorted_by_cost_and_error_falls(errors):
    found = best_schedules(errors, BRANCH, SHARE, PRICES)
    assert len(found) > 3
    for cheaper, dearer in itertools.pairwise(found):
        assert cheaper.cost < dearer.cost
        assert cheaper.error > dearer.error


def test_a_low_price_gives_full_steps_and_a_high_one_as_few_as_possible(errors):
    *_, closest = best_schedules(errors, BRANCH, SHARE, PRICES)
    assert closest.schedule == StepSchedule((Step(True),) * STEPS)
    assert (closest.error, closest.cost) == (0, pytest.approx(1))
    cheapest = best_schedules(errors, BRANCH, SHARE, PRICES)[0].schedule
    assert cheapest.full_steps(STEPS) == math.ceil(STEPS / (LONGEST + 1))
    assert all(step.guidance_reuse for step in cheapest.each if not step.full)


def test_order_and_duplicates_of_prices_change_nothing(errors):
    expected = best_schedules(errors, BRANCH, SHARE, PRICES)
    assert best_schedules(errors, BRANCH, SHARE, [*reversed(PRICES), *PRICES]) == expected


def test_impossible_segments_are_never_chosen(errors):
    without_reuse = errors.clone()
    without_reuse[:, :, 1:, 1] = math.inf
    short = errors.clone()
    short[:, :, 2:] = math.inf
    not_at_three = errors.clone()
    not_at_three[3] = math.inf
    for prices in ([1e12], PRICES):
        for found in best_schedules(without_reuse, BRANCH, SHARE, prices):
            assert not any(step.guidance_reuse for step in found.schedule.each)
        for found in best_schedules(short, BRANCH, SHARE, prices):
            assert ".." not in found.schedule.pattern(STEPS)
        for found in best_schedules(not_at_three, BRANCH, SHARE, prices):
            assert not found.schedule.each[3].full


def test_a_forecast_that_is_worse_than_none_is_not_used(errors):
    errors = errors.clone()
    errors[:, 1:, 1:] += 10
    for found in best_schedules(errors, BRANCH, SHARE, PRICES):
        assert {step.forecast for step in found.schedule.each} == {"none"}
    errors[:, 0, 1:] += 20
    forecasts = {
        step.forecast for found in best_schedules(errors, BRANCH, SHARE, PRICES) for step in found.schedule.each[5:]
    }
    assert "linear" in forecasts


def test_predicted_error_is_the_sum_over_the_segments(errors):
    linear, reused = Step(False, forecast="linear"), Step(False, guidance_reuse=True)
    schedule = StepSchedule((Step(True), linear, linear, Step(True), linear, Step(True), reused))
    by_hand = errors[0, 0, 2, 0] + errors[3, 3, 1, 0] + errors[5, 0, 1, 1]
    assert predicted_error(errors, schedule) == pytest.approx(float(by_hand))
    assert predicted_error(errors, StepSchedule((Step(True),) * STEPS)) == 0


def test_steps_are_skipped_if_measured_and_worthwhile(errors):
    skipped = errors[..., :1] * 0.5
    three = torch.cat([errors, skipped], dim=3)
    shallow = {found.schedule for found in best_schedules(errors, BRANCH, SHARE, PRICES)}
    for found in best_schedules(three, BRANCH, SHARE, PRICES, "limited"):
        assert all(step.forecast == "limited" for step in found.schedule.each if step.skipped)
        costs = [1 if step.full else 0 if step.skipped else SHARE for step in found.schedule.each]
        costs = [
            cost / 2 if step.guidance_reuse else cost for cost, step in zip(costs, found.schedule.each, strict=True)
        ]
        assert found.cost == pytest.approx(sum(costs) / STEPS)
        assert predicted_error(three, found.schedule) == pytest.approx(found.error)
    cheapest = best_schedules(three, BRANCH, SHARE, PRICES)[0]
    assert cheapest.cost == pytest.approx(math.ceil(STEPS / (LONGEST + 1)) / STEPS)
    too_wrong = torch.cat([errors, errors[..., :1] + 100], dim=3)
    too_wrong[:, :, 0, 2] = 0
    assert {found.schedule for found in best_schedules(too_wrong, BRANCH, SHARE, PRICES[:-1])} <= shallow


def test_the_error_of_a_segment_of_several_kinds_is_the_mean(errors):
    three = torch.cat([errors, 3 * errors[..., :1]], dim=3)
    shallow, skipped = Step(False, forecast="linear"), Step(False, forecast="response", skipped=True)
    schedule = StepSchedule((Step(True), Step(True), shallow, skipped, *[Step(True)] * 3))
    assert predicted_error(three, schedule) == pytest.approx(2 * float(errors[1, 1, 2, 0]))
    assert predicted_error(errors, schedule) is None


def test_an_error_that_was_not_measured_is_not_predicted(errors):
    too_long = StepSchedule((Step(True), *[Step(False)] * (LONGEST + 1), Step(True), Step(True)))
    assert predicted_error(errors, too_long) is None
    few_gaps = errors[:, :3]
    linear = Step(False, forecast="linear")
    schedule = StepSchedule((Step(True), linear, linear, Step(True), linear, linear, Step(True)))
    assert predicted_error(errors, schedule) is not None
    assert predicted_error(few_gaps, schedule) is None
