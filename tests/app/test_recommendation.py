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
            "steps": int(label.split()[0]) if "steps" in label else 50,
            "mac_share": share,
            "psnr": {"mean": psnr, "confidence": [psnr - 2, psnr + 2], "values": []},
        }
        for label, share, psnr in ways
    ]
    values = {"guidance": 7.5, "scheduler": "ddim", "steps": 50, "cells": cells, "reference": None}
    measured = FidelityGroup("DDIMScheduler, 50 steps", values, 24, 8, [])
    configs = [None if "steps" in label else DeepCacheConfig() for label, _, _ in ways]
    found = [Way(cell, 24, config) for cell, config in zip(cells, configs, strict=True)]
    return ExploredGroup(measured, "shapes", measured.title, found)


FEWER = (("25 steps", 0.5, 45.0), ("20 steps", 0.4, 55.0), ("12 steps", 0.24, 30.0))
GROUP = group_of(("A", 0.5, 60.0), ("B", 0.4, 50.0), ("C", 0.25, 40.0), *FEWER)


def labels(ways):
    return [way.label for way in ways]


@pytest.mark.parametrize(
    ("speed_up", "best", "deepcache", "alternatives", "fewer"),
    [
        (1, "A", "A", ["B", "C"], "25 steps"),
        (2, "A", "A", ["B", "C"], "25 steps"),
        (2.01, "20 steps", "B", ["C"], "20 steps"),
        # A cost of 0.4 is a speed-up of 2.5 to the last bit of a sum.
        (2.5, "20 steps", "B", ["C"], "20 steps"),
        (2.51, "C", "C", [], "12 steps"),
        (4, "C", "C", [], "12 steps"),
    ],
)
def test_for_a_speed_up_the_closest_of_all_that_is_fast_enough(speed_up, best, deepcache, alternatives, fewer):
    found = recommend_for_speed_up(GROUP, speed_up)
    assert (found.best.label, found.deepcache.label, labels(found.alternatives)) == (best, deepcache, alternatives)
    assert found.fewer_steps.label == fewer


@pytest.mark.parametrize(
    ("psnr", "best", "deepcache", "alternatives"),
    [
        (60, "A", "A", []),
        # 20 steps are closer at the same cost.
        (50, "20 steps", "B", ["A"]),
        (50.01, "20 steps", "A", []),
        (40, "C", "C", ["B", "A"]),
        (40.01, "20 steps", "B", ["A"]),
        # 12 steps are cheaper, and close enough.
        (30, "12 steps", "C", ["B", "A"]),
        (30.01, "C", "C", ["B", "A"]),
    ],
)
def test_for_a_fidelity_the_cheapest_of_all_that_is_close_enough(psnr, best, deepcache, alternatives):
    found = recommend_for_fidelity(GROUP, psnr)
    assert (found.best.label, found.deepcache.label, labels(found.alternatives)) == (best, deepcache, alternatives)


def test_of_equals_the_cheaper_or_the_nearer():
    group = group_of(("dear", 0.5, 50.0), ("cheap", 0.4, 50.0), ("near", 0.4, 52.0), ("far", 0.4, 48.0))
    assert recommend_for_speed_up(group_of(("dear", 0.5, 50.0), ("cheap", 0.4, 50.0)), 1).best.label == "cheap"
    assert recommend_for_fidelity(group, 48).best.label == "near"
    assert labels(recommend_for_fidelity(group, 48).alternatives) == ["cheap", "far", "dear"]


def test_costs_that_differ_in_the_last_bits_are_the_same():
    share = 0.1 + 0.2
    group = group_of(("A", share, 50.0), ("15 steps", 0.3, 49.0))
    assert share > 0.3
    assert recommend_for_fidelity(group, 40).best.label == "A"
    assert recommend_for_speed_up(group, 1 / 0.3).best.label == "A"


def test_at_most_three_alternatives():
    group = group_of(*((name, 0.5, 60.0 - number) for number, name in enumerate("ABCDEF")))
    assert labels(recommend_for_speed_up(group, 2).alternatives) == ["B", "C", "D"]


def words(found):
    return [sentence.replace("\xa0", " ") for sentence in found.sentences]


def test_in_words():
    assert words(recommend_for_fidelity(GROUP, 40)) == [
        "For 40 dB or more: C. The U-Net is 4.00× as fast by its multiply-accumulates (25.0 % of them), and the images "
        "come to 40.00 dB PSNR against no caching on average (95 % confidence interval 38.00 to 42.00 dB, images: 24).",
        "Fewer steps at the nearest cost: 12 steps without caching with 4.17× (24.0 %) and 30.00 dB, which is 10.00 dB "
        "less.",
        "Next come B (40.0 %, 50.00 dB); A (50.0 %, 60.00 dB).",
        "Measured on shapes with DDIMScheduler, 50 steps, guidance 7.5: other models and guidance scales have other "
        "figures. A speed-up here is that of the U-Net by its multiply-accumulates; what a device makes of it, "
        "deepcache benchmark measures.",
    ]


def test_where_fewer_steps_are_better_it_says_to_use_them():
    found = recommend_for_speed_up(GROUP, 2.5)
    assert words(found) == [
        "For a speed-up of 2.5 or more: use 20 steps without DeepCache. The U-Net is 2.50× as fast by its "
        "multiply-accumulates (40.0 % of them), and the images come to 55.00 dB PSNR against no caching on average "
        "(95 % confidence interval 53.00 to 57.00 dB, images: 24).",
        "Fewer steps are closer to no caching: the best of DeepCache is B with 2.50× (40.0 %) and 50.00 dB, 5.00 dB "
        "less.",
        "Next come C (25.0 %, 40.00 dB).",
        "Measured on shapes with DDIMScheduler, 50 steps, guidance 7.5: other models and guidance scales have other "
        "figures. A speed-up here is that of the U-Net by its multiply-accumulates; what a device makes of it, "
        "deepcache benchmark measures.",
    ]
    cheaper = words(recommend_for_fidelity(GROUP, 29))
    assert cheaper[0].startswith("For 29 dB or more: use 12 steps without DeepCache.")
    assert cheaper[1] == (
        "Fewer steps are cheaper: the best of DeepCache is C with 4.00× (25.0 %) and 40.00 dB, 10.00 dB more."
    )
    both = group_of(("A", 0.5, 50.0), ("20 steps", 0.4, 55.0), ("25 steps", 0.5, 40.0))
    assert words(recommend_for_fidelity(both, 45))[1].startswith("Fewer steps are cheaper and closer to no caching: ")


def test_where_nothing_but_fewer_steps_will_do_it_says_to_use_them():
    found = recommend_for_speed_up(GROUP, 4.1)
    assert (found.best.label, found.deepcache, found.alternatives) == ("12 steps", None, [])
    assert words(found)[0].startswith("For a speed-up of 4.1 or more: use 12 steps without DeepCache.")
    assert words(found)[1] == (
        "No settings of DeepCache that were measured fulfil the wish; the fastest are C with 4.00× (25.0 %) and "
        "40.00 dB."
    )


def test_of_equals_deepcache_is_recommended():
    equal = group_of(("20 steps", 0.4, 50.0), ("A", 0.4, 50.0))
    assert recommend_for_speed_up(equal, 2).best.label == recommend_for_fidelity(equal, 50).best.label == "A"


def test_where_fewer_steps_were_not_measured_that_is_said():
    found = recommend_for_speed_up(group_of(("A", 0.5, 60.0)), 2)
    assert found.fewer_steps is None
    assert found.sentences[1] == "Fewer steps without caching were not measured, so the fair comparison is missing."
    assert len(found.sentences) == 3


@pytest.mark.parametrize(
    ("recommend", "message"),
    [
        (
            lambda: recommend_for_speed_up(GROUP, 5),
            "nothing that was measured on shapes with DDIMScheduler, 50 steps, guidance 7.5 fulfils the wish for a "
            "speed-up of 5 or more; of DeepCache the fastest are C with 4.00× (25.0 %) and 40.00 dB",
        ),
        (
            lambda: recommend_for_fidelity(GROUP, 61),
            "nothing that was measured on shapes with DDIMScheduler, 50 steps, guidance 7.5 fulfils the wish for "
            "61 dB or more; of DeepCache the closest are A with 2.00× (50.0 %) and 60.00 dB",
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
            allowed = [way.psnr for way in group.ways if way.mac_share * speed_up <= 1]
            assert found.best.psnr == max(allowed)
            assert found.best.speed_up >= speed_up
        for psnr in (35, 45, 55):
            best = recommend_for_fidelity(group, psnr).best
            assert best.mac_share == min(way.mac_share for way in group.ways if way.psnr >= psnr)
            assert best.psnr >= psnr
