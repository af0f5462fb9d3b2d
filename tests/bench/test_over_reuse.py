"""What a setting gains over plain re-use."""

from __future__ import annotations

import pytest

from DeepCache import DeepCacheConfig
from DeepCache.bench.over_reuse import mark_over_reuse
from DeepCache.bench.summary import summary
from DeepCache.bench.variants import parse_variant
from DeepCache.schedule import UniformSchedule


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


def test_results_of_versions_without_skipped_steps_are_read():
    cells = [cell("I=3 B=0", [30.0, 30.0]), cell("I=3 B=0 linear", [32.0, 32.0])]
    for each in cells:
        del each["config"]["between"], each["config"]["threshold"]
    mark_over_reuse(cells)
    assert cells[1]["over_reuse"]["psnr"]["mean"] == 2


def test_what_has_no_reuse_to_compare_with_has_none():
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
