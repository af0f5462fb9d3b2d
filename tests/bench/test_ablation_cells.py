"""Comparisons of the cells of an ablation, and files of the older format."""

from __future__ import annotations

from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from DeepCache import DeepCacheConfig
from DeepCache.bench.ablation_cells import mark_front, mark_over_reuse
from DeepCache.bench.result_file import ABLATION_FORMAT, read_result, resumed_result, write_result
from DeepCache.bench.summary import paired, percentile_5, summary
from DeepCache.bench.variants import parse_variant
from DeepCache.schedule import UniformSchedule
from tests.bench.properties import steady
from tests.report.synthetic_results import ablation, in_format_1

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
    better = one["psnr"]["mean"] - other["psnr"]["mean"]
    return cheaper >= 0 and better >= 0 and (cheaper > 0 or better > 0)


@steady
@given(st.lists(st.tuples(SHARES, VALUES), min_size=1, max_size=8))
def test_a_dominated_cell_names_the_best_dominating_one_and_its_gain(points):
    cells = cells_of(*points)
    mark_front(cells)
    by_label = {cell["label"]: cell for cell in cells}
    for cell in cells:
        assert cell["front"] is (cell["dominated_by"] is None) is not any(beats(other, cell) for other in cells)
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


def test_the_gain_is_paired_by_image():
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


def cell(label, psnr, config=None):
    return {
        "label": label,
        "config": (parse_variant(label).config if config is None else config).to_dict(),
        "psnr": summary(psnr),
        "ssim": summary([value / 100 for value in psnr]),
    }


def test_each_is_compared_with_reuse_at_its_interval_and_branch():
    cells = [
        cell("I=3 B=0 linear", [31.0, 43.0]),
        cell("I=3 B=0", [30.0, 40.0]),
        cell("I=3 B=1", [50.0, 50.0]),
        cell("I=3 B=1 quadratic guidance-reuse non-uniform", [49.0, 49.0]),
    ]
    mark_over_reuse(cells)
    linear, *reuse, other = (each["over_reuse"] for each in cells)
    assert linear == {
        "label": "I=3 B=0",
        "psnr": {"mean": 2, "confidence": pytest.approx([2 - 1.96, 2 + 1.96])},
        "ssim": {"mean": pytest.approx(0.02), "confidence": pytest.approx([0.02 - 0.0196, 0.02 + 0.0196])},
    }
    assert reuse == [None, None]
    assert (other["label"], other["psnr"]) == ("I=3 B=1", {"mean": -1, "confidence": [-1, -1]})


def test_skipped_steps_are_compared_with_skipped_ones():
    cells = [
        cell("I=3 B=0", [30.0, 30.0]),
        cell("I=3 B=0 skipped", [32.0, 32.0]),
        cell("I=3 B=0 response skipped", [35.0, 35.0]),
        cell("I=3 B=0 limited alternating", [36.0, 36.0]),
    ]
    mark_over_reuse(cells)
    reuse, skipped, response, alternating = (each["over_reuse"] for each in cells)
    assert (reuse, skipped, alternating) == (None, None, None)
    assert (response["label"], response["psnr"]["mean"]) == ("I=3 B=0 skipped", 3)


def test_results_of_versions_without_skipped_steps_are_compared():
    cells = [cell("I=3 B=0", [30.0, 30.0]), cell("I=3 B=0 linear", [32.0, 32.0])]
    for each in cells:
        del each["config"]["between"], each["config"]["threshold"]
    mark_over_reuse(cells)
    assert cells[1]["over_reuse"]["psnr"]["mean"] == 2


def test_cells_without_comparable_reuse_have_no_difference():
    fewer = cell("I=3 B=0 linear", [20.0, 20.0]) | {"label": "9 steps", "config": None}
    scheduled = DeepCacheConfig(3, 0, schedule=UniformSchedule(4))
    cells = [
        cell("I=3 B=0", [30.0, 30.0]),
        cell("I=5 B=0 linear", [30.0, 30.0]),
        cell("plan a", [30.0, 30.0], scheduled),
        # There the interval is a limit alone.
        cell("I=3 B=0 limited adaptive", [30.0, 30.0]),
        fewer,
        cell("I=3 B=0 linear", [30.0, 30.0]) | {"psnr": None},
    ]
    mark_over_reuse(cells)
    assert [each["over_reuse"] for each in cells] == [None] * 6


@pytest.fixture
def older(tmp_path):
    path = tmp_path / "older.json"
    write_result(path, in_format_1(ablation(guidances=(2.5,), clip=True)))
    return path


def test_an_older_file_is_read_in_the_current_format(older):
    expected = ablation(guidances=(2.5,), clip=True)
    found = read_result(older)
    assert found["format"] == ABLATION_FORMAT
    assert found["settings"] == expected["settings"]
    for group, wanted in zip(found["groups"], expected["groups"], strict=True):
        assert group["guidance"] == 2.5
        for cell in (group["reference"], *group["cells"]):
            assert cell["right"] is None
            for name in ("psnr", "ssim", "lpips", "clip"):
                if cell.get(name) is not None:
                    assert cell[name]["p5"] == percentile_5(cell[name]["values"])
        assert [cell["over_reuse"] for cell in group["cells"]] == [cell["over_reuse"] for cell in wanted["cells"]]
    # What is returned is in order by the current schema too.
    write_result(older, found)
    assert read_result(older) == found


def test_older_groups_without_cells_are_read(tmp_path):
    result = in_format_1(ablation())
    result["groups"][0] |= {"reference": None, "cells": []}
    write_result(tmp_path / "older.json", result)
    (group,) = read_result(tmp_path / "older.json")["groups"]
    assert (group["reference"], group["cells"], group["guidance"]) == (None, [], 2.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda cell: cell["config"].update(cache_interval=0), "cache_interval must be 1 or more, got 0"),
        (lambda cell: cell["config"].pop("plan"), "'plan'"),
        (lambda cell: cell["psnr"].update(values=[]), "index out of range"),
    ],
)
def test_a_damaged_older_file_is_refused_with_its_name(tmp_path, change, words):
    result = in_format_1(ablation())
    change(result["groups"][0]["cells"][0])
    write_result(tmp_path / "older.json", result)
    with pytest.raises(ValueError, match=rf"older\.json' is damaged: .*{words}"):
        read_result(tmp_path / "older.json")


def test_an_older_file_is_not_resumed(older):
    with pytest.raises(ValueError, match='format is "DeepCache ablation 1" there and "DeepCache ablation 2" now'):
        resumed_result(older, ablation())
