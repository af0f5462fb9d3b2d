"""The Pareto front."""

from __future__ import annotations

from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from DeepCache.bench.front import mark_front
from DeepCache.bench.summary import paired, percentile_5, summary
from tests.bench.properties import steady

# Few different values, so that there are ties.
SHARES = st.integers(1, 6).map(lambda tenth: tenth / 10)
VALUES = st.lists(st.integers(20, 24).map(float), min_size=2, max_size=2)


def cells_of(*points):
    return [
        {"label": f"cell {place}", "mac_share": share, "psnr": summary(values)}
        for place, (share, values) in enumerate(points)
    ]


def beats(one, other):
    """By the definition: no worse in either, and better in one."""
    cheaper = other["mac_share"] - one["mac_share"]
    nearer = one["psnr"]["mean"] - other["psnr"]["mean"]
    return cheaper >= 0 and nearer >= 0 and (cheaper > 0 or nearer > 0)


@steady
@given(st.lists(st.tuples(SHARES, VALUES), min_size=1, max_size=8))
def test_the_front_is_what_nothing_beats(points):
    cells = cells_of(*points)
    mark_front(cells)
    for cell in cells:
        assert cell["front"] is not any(beats(other, cell) for other in cells)
        assert cell["front"] is (cell["dominated_by"] is None)


@steady
@given(st.lists(st.tuples(SHARES, VALUES), min_size=1, max_size=8))
def test_what_is_beaten_names_the_nearest_that_beats_it_and_by_how_much(points):
    cells = cells_of(*points)
    mark_front(cells)
    by_label = {cell["label"]: cell for cell in cells}
    for cell in cells:
        if cell["front"]:
            continue
        named = cell["dominated_by"]
        better = by_label[named["label"]]
        assert beats(better, cell)
        assert better["psnr"]["mean"] == max(other["psnr"]["mean"] for other in cells if beats(other, cell))
        gains = [one - other for one, other in zip(better["psnr"]["values"], cell["psnr"]["values"], strict=True)]
        assert named["psnr_gain"] == fmean(gains) >= 0
        low, high = named["confidence"]
        assert low <= named["psnr_gain"] <= high


@steady
@given(st.lists(st.tuples(SHARES, VALUES), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_the_front_does_not_depend_on_the_order(points, random):
    cells = cells_of(*points)
    mark_front(cells)
    shuffled = [dict(cell) for cell in cells]
    random.shuffle(shuffled)
    mark_front(shuffled)
    assert {cell["label"]: cell["front"] for cell in cells} == {cell["label"]: cell["front"] for cell in shuffled}


@steady
@given(st.lists(st.tuples(SHARES, VALUES), min_size=1, max_size=6))
def test_marking_again_changes_nothing(points):
    cells = cells_of(*points)
    mark_front(cells)
    before = [dict(cell) for cell in cells]
    mark_front(cells)
    assert cells == before


def test_costs_that_differ_in_the_last_bits_are_alike():
    share = 0.1 + 0.2
    assert share != 0.3
    dear, cheap = cells_of((share, [30.0, 30.0]), (0.3, [30.0, 30.0]))
    mark_front([dear, cheap])
    assert dear["front"]
    assert cheap["front"]
    near, far = cells_of((share, [31.0, 31.0]), (0.3, [30.0, 30.0]))
    mark_front([near, far])
    assert near["front"]
    assert far["dominated_by"] == {"label": "cell 0", "psnr_gain": 1.0, "confidence": [1.0, 1.0]}


def test_the_gain_is_taken_image_by_image():
    worse, better = cells_of((0.5, [20.0, 30.0]), (0.5, [22.0, 36.0]))
    mark_front([worse, better])
    # Gains of 2 and 6: the mean 4, the standard deviation √8, over √2 images.
    margin = 1.96 * 2
    assert worse["dominated_by"]["psnr_gain"] == 4
    assert worse["dominated_by"]["confidence"] == pytest.approx([4 - margin, 4 + margin])


def test_a_summary_is_the_mean_its_interval_and_every_value():
    found = summary([1.0, 2.0, 3.0])
    assert found["values"] == [1.0, 2.0, 3.0]
    assert found["mean"] == 2
    assert found["confidence"] == pytest.approx([2 - 1.96 / 3**0.5, 2 + 1.96 / 3**0.5])
    assert summary([1.23456789])["confidence"] == [1.23457, 1.23457]


def test_a_5th_percentile_lies_between_the_two_nearest_values():
    # A twentieth of the way through 21 values is the second, through 11 halfway between the first two.
    assert percentile_5([float(value) for value in range(21)]) == 1
    assert percentile_5([float(value) for value in reversed(range(11))]) == 0.5
    assert percentile_5([7.0]) == 7
    assert summary([40.0, 42.0])["p5"] == pytest.approx(40.1)


def test_a_paired_difference_is_narrower_than_the_values_are_apart():
    # Gains of 1 and 3: the mean 2, the standard deviation √2, over √2 images.
    assert paired([11.0, 43.0], [10.0, 40.0]) == {"mean": 2, "confidence": pytest.approx([2 - 1.96, 2 + 1.96])}
    with pytest.raises(ValueError, match="zip"):
        paired([1.0], [1.0, 2.0])
