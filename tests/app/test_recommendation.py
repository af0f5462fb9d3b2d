import re

import pytest

from DeepCache.app.explorer import SHIPPED_ABLATION, Explorer
from DeepCache.app.measured_group import ExploredGroup, Way
from DeepCache.app.recommendation import recommend_for_fidelity, recommend_for_speed_up
from DeepCache.config import DeepCacheConfig
from DeepCache.report.fidelity import FidelityGroup


def group_of(*ways):
    """A group from labels, costs and PSNRs, with an interval of confidence of 2 dB on either side."""
    cells = [
        {
            "method": "fewer steps" if "steps" in label else "DeepCache",
            "label": label,
            "mac_share": share,
            "psnr": {"mean": psnr, "confidence": [psnr - 2, psnr + 2], "values": []},
        }
        for label, share, psnr in ways
    ]
    values = {"scheduler": "ddim", "steps": 50, "cells": cells, "reference": None}
    measured = FidelityGroup("DDIMScheduler, 50 steps", values, 24, 8, [])
    configs = [None if "steps" in label else DeepCacheConfig() for label, _, _ in ways]
    found = [Way(cell, 24, config) for cell, config in zip(cells, configs, strict=True)]
    return ExploredGroup(measured, "shapes", found)


FEWER = (("25 steps", 0.5, 45.0), ("20 steps", 0.4, 55.0), ("12 steps", 0.24, 30.0))
GROUP = group_of(("A", 0.5, 60.0), ("B", 0.4, 50.0), ("C", 0.25, 40.0), *FEWER)


def labels(ways):
    return [way.label for way in ways]


@pytest.mark.parametrize(
    ("speed_up", "best", "alternatives", "fewer", "better"),
    [
        (1, "A", ["B", "C"], "25 steps", None),
        (2, "A", ["B", "C"], "25 steps", None),
        (2.01, "B", ["C"], "20 steps", "20 steps"),
        # A cost of 0.4 is a speed-up of 2.5 to the last bit of a sum.
        (2.5, "B", ["C"], "20 steps", "20 steps"),
        (2.51, "C", [], "12 steps", None),
        (4, "C", [], "12 steps", None),
    ],
)
def test_for_a_speed_up_the_nearest_of_those_that_are_fast_enough(speed_up, best, alternatives, fewer, better):
    found = recommend_for_speed_up(GROUP, speed_up)
    assert (found.best.label, labels(found.alternatives)) == (best, alternatives)
    assert found.fewer_steps.label == fewer
    assert (found.better_fewer_steps and found.better_fewer_steps.label) == better


@pytest.mark.parametrize(
    ("psnr", "best", "alternatives", "better"),
    [
        (60, "A", [], None),
        # 20 steps are nearer at the same cost.
        (50, "B", ["A"], "20 steps"),
        (50.01, "A", [], "20 steps"),
        (40, "C", ["B", "A"], None),
        (40.01, "B", ["A"], "20 steps"),
        # 12 steps are cheaper, and near enough.
        (30, "C", ["B", "A"], "12 steps"),
        (30.01, "C", ["B", "A"], None),
    ],
)
def test_for_a_fidelity_the_cheapest_of_those_that_are_near_enough(psnr, best, alternatives, better):
    found = recommend_for_fidelity(GROUP, psnr)
    assert (found.best.label, labels(found.alternatives)) == (best, alternatives)
    assert (found.better_fewer_steps and found.better_fewer_steps.label) == better


def test_of_equals_the_cheaper_or_the_nearer():
    group = group_of(("dear", 0.5, 50.0), ("cheap", 0.4, 50.0), ("near", 0.4, 52.0), ("far", 0.4, 48.0))
    assert recommend_for_speed_up(group_of(("dear", 0.5, 50.0), ("cheap", 0.4, 50.0)), 1).best.label == "cheap"
    assert recommend_for_fidelity(group, 48).best.label == "near"
    assert labels(recommend_for_fidelity(group, 48).alternatives) == ["cheap", "far", "dear"]


def test_costs_that_differ_in_the_last_bits_are_the_same():
    share = 0.1 + 0.2
    group = group_of(("A", share, 50.0), ("15 steps", 0.3, 49.0))
    assert share > 0.3
    assert recommend_for_fidelity(group, 40).better_fewer_steps is None
    assert recommend_for_speed_up(group, 1 / 0.3).best.label == "A"


def test_at_most_three_alternatives():
    group = group_of(*((name, 0.5, 60.0 - number) for number, name in enumerate("ABCDEF")))
    assert labels(recommend_for_speed_up(group, 2).alternatives) == ["B", "C", "D"]


def test_in_words():
    found = recommend_for_speed_up(GROUP, 2.5)
    assert [sentence.replace("\xa0", " ") for sentence in found.sentences] == [
        "For a speed-up of 2.5 or more: B. It makes the U-Net 2.50× as fast by its multiply-accumulates (40.0 % of "
        "them), and its pictures come to 50.00 dB PSNR against no caching on average (95 % confidence interval 48.00 "
        "to 52.00 dB, images: 24).",
        "Fewer steps are better here, nearer: 20 steps without caching with 2.50× (40.0 %) and 55.00 dB, which is "
        "5.00 dB more.",
        "Next come C (25.0 %, 40.00 dB).",
        "Measured on shapes with DDIMScheduler, 50 steps: other models have other figures. A speed-up here is that of "
        "the U-Net by its multiply-accumulates; what a device makes of it, deepcache benchmark measures.",
    ]


def test_in_words_where_fewer_steps_are_cheaper_or_no_better():
    cheaper = recommend_for_fidelity(GROUP, 29).sentences[1].replace("\xa0", " ")
    assert cheaper == (
        "Fewer steps are better here, cheaper: 12 steps without caching with 4.17× (24.0 %) and 30.00 dB, which is "
        "10.00 dB less."
    )
    worse = recommend_for_fidelity(GROUP, 60).sentences[1].replace("\xa0", " ")
    assert worse == (
        "Fewer steps at the nearest cost: 25 steps without caching with 2.00× (50.0 %) and 45.00 dB, which is "
        "15.00 dB less."
    )
    both = group_of(("A", 0.5, 50.0), ("20 steps", 0.4, 55.0), ("25 steps", 0.5, 40.0))
    first, second = recommend_for_fidelity(both, 45).sentences[1:3]
    assert first.startswith("Fewer steps are better here, cheaper and nearer: 20 steps")
    assert second.startswith("Fewer steps at the nearest cost: 25 steps")


def test_where_fewer_steps_were_not_measured_that_is_said():
    found = recommend_for_speed_up(group_of(("A", 0.5, 60.0)), 2)
    assert found.fewer_steps is None
    assert found.sentences[1] == "Fewer steps without caching were not measured, so the fair comparison is missing."
    assert len(found.sentences) == 3


@pytest.mark.parametrize(
    ("recommend", "message"),
    [
        (
            lambda: recommend_for_speed_up(GROUP, 4.1),
            "no settings of DeepCache that were measured on shapes with DDIMScheduler, 50 steps, fulfil the wish for a "
            "speed-up of 4.1 or more; the fastest are C with 4.00× (25.0 %) and 40.00 dB; fewer steps without caching "
            "do: 12 steps without caching with 4.17× (24.0 %) and 30.00 dB",
        ),
        (
            lambda: recommend_for_speed_up(GROUP, 5),
            "no settings of DeepCache that were measured on shapes with DDIMScheduler, 50 steps, fulfil the wish for a "
            "speed-up of 5 or more; the fastest are C with 4.00× (25.0 %) and 40.00 dB",
        ),
        (
            lambda: recommend_for_fidelity(GROUP, 61),
            "no settings of DeepCache that were measured on shapes with DDIMScheduler, 50 steps, fulfil the wish for "
            "61 dB or more; the nearest are A with 2.00× (50.0 %) and 60.00 dB",
        ),
        (lambda: recommend_for_speed_up(GROUP, 0.9), "the speed-up must be a number from 1, got 0.9"),
        (lambda: recommend_for_speed_up(GROUP, float("nan")), "the speed-up must be a number from 1, got nan"),
        (lambda: recommend_for_speed_up(GROUP, float("inf")), "the speed-up must be a number from 1, got inf"),
        (lambda: recommend_for_fidelity(GROUP, -1), "the PSNR must be a number of dB from 0 to 120, got -1"),
        (lambda: recommend_for_fidelity(GROUP, float("nan")), "the PSNR must be a number of dB from 0 to 120, got nan"),
    ],
)
def test_a_wish_that_cannot_be_fulfilled_says_what_can(recommend, message):
    # Per cent has a blank before it that no line breaks at.
    with pytest.raises(ValueError, match=f"^{re.escape(message.replace(' %', chr(0xA0) + '%'))}$"):
        recommend()


def test_a_recommendation_from_the_shipped_ablation_keeps_its_word():
    for group in Explorer.from_file(SHIPPED_ABLATION).groups:
        for speed_up in (1.2, 2, 3, 4):
            found = recommend_for_speed_up(group, speed_up)
            allowed = [way.psnr for way in group.deepcache if way.mac_share * speed_up <= 1]
            assert found.best.psnr == max(allowed)
            assert found.best.speed_up >= speed_up
        for psnr in (35, 45, 55):
            best = recommend_for_fidelity(group, psnr).best
            assert best.mac_share == min(way.mac_share for way in group.deepcache if way.psnr >= psnr)
            assert best.psnr >= psnr
