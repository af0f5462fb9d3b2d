import re

import pytest

from DeepCache.app.explorer import SHIPPED_ABLATION, ExploredGroup, Explorer
from DeepCache.app.recommendation import recommend
from DeepCache.report.fidelity import FidelityGroup


def group_of(*settings):
    """A group from labels, costs and PSNRs, with a confidence interval of 2 dB on either side."""
    cells = [
        {
            "method": "fewer steps" if "steps" in label else "DeepCache",
            "label": label,
            "steps": int(label.split()[0]) if "steps" in label else 50,
            "mac_share": share,
            "psnr": {"mean": psnr, "confidence": [psnr - 2, psnr + 2], "values": []},
        }
        for label, share, psnr in settings
    ]
    values = {"guidance": 7.5, "scheduler": "ddim", "steps": 50, "cells": cells, "reference": None}
    measured = FidelityGroup("DDIMScheduler, 50 steps", values, 24, 8, [])
    return ExploredGroup(measured, "shapes", measured.title)


FEWER = (("25 steps", 0.5, 45.0), ("20 steps", 0.4, 55.0), ("12 steps", 0.24, 30.0))
GROUP = group_of(("A", 0.5, 60.0), ("B", 0.4, 50.0), ("C", 0.25, 40.0), *FEWER)


def labels(cells):
    return [cell["label"] for cell in cells]


def recommend_for_speed_up(group, value):
    return recommend(group, "speed-up", value)


def recommend_for_fidelity(group, value):
    return recommend(group, "fidelity", value)


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
def test_a_speed_up_recommends_the_closest_settings_that_are_fast_enough(
    speed_up, best, deepcache, alternatives, fewer
):
    found = recommend_for_speed_up(GROUP, speed_up)
    assert (found.best["label"], found.deepcache["label"], labels(found.alternatives)) == (
        best,
        deepcache,
        alternatives,
    )
    assert found.fewer_steps["label"] == fewer


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
def test_a_fidelity_recommends_the_cheapest_settings_that_are_close_enough(psnr, best, deepcache, alternatives):
    found = recommend_for_fidelity(GROUP, psnr)
    assert (found.best["label"], found.deepcache["label"], labels(found.alternatives)) == (
        best,
        deepcache,
        alternatives,
    )


def test_ties_go_to_the_cheaper_or_closer_settings():
    group = group_of(("dear", 0.5, 50.0), ("cheap", 0.4, 50.0), ("near", 0.4, 52.0), ("far", 0.4, 48.0))
    assert recommend_for_speed_up(group_of(("dear", 0.5, 50.0), ("cheap", 0.4, 50.0)), 1).best["label"] == "cheap"
    assert recommend_for_fidelity(group, 48).best["label"] == "near"
    assert labels(recommend_for_fidelity(group, 48).alternatives) == ["cheap", "far", "dear"]


def test_costs_that_differ_in_the_last_bits_are_equal():
    share = 0.1 + 0.2
    group = group_of(("A", share, 50.0), ("15 steps", 0.3, 49.0))
    assert share > 0.3
    assert recommend_for_fidelity(group, 40).best["label"] == "A"
    assert recommend_for_speed_up(group, 1 / 0.3).best["label"] == "A"


def test_at_most_three_alternatives():
    group = group_of(*((name, 0.5, 60.0 - number) for number, name in enumerate("ABCDEF")))
    assert labels(recommend_for_speed_up(group, 2).alternatives) == ["B", "C", "D"]


def words(found):
    return [sentence.replace("\xa0", " ") for sentence in found.sentences]


def test_a_recommendation_in_words():
    assert words(recommend_for_fidelity(GROUP, 40)) == [
        "For a PSNR of 40 dB or more: C. The U-Net is 4.00× as fast by its multiply-accumulates (25.0 %), with a mean "
        "PSNR of 40.00 dB against no caching (95 % confidence interval 38.00 to 42.00 dB, 24 images).",
        "Fewer steps at the closest cost: 12 steps without caching with 4.17× (24.0 %) and 30.00 dB, which is 10.00 dB "
        "less.",
        "Next best: B (40.0 %, 50.00 dB); A (50.0 %, 60.00 dB).",
        "Measured on shapes with DDIMScheduler, 50 steps, guidance 7.5. Other models and guidance scales give other "
        "figures. The speed-up counts the U-Net's multiply-accumulates; deepcache benchmark measures the time on a "
        "device.",
    ]


def test_fewer_steps_are_recommended_if_they_are_better():
    found = recommend_for_speed_up(GROUP, 2.5)
    assert words(found) == [
        "For a speed-up of 2.5 or more: use 20 steps without DeepCache. The U-Net is 2.50× as fast by its "
        "multiply-accumulates (40.0 %), with a mean PSNR of 55.00 dB against no caching (95 % confidence interval "
        "53.00 to 57.00 dB, 24 images).",
        "Fewer steps are closer to no caching: the best settings of DeepCache are B with 2.50× (40.0 %) and 50.00 dB, "
        "5.00 dB less.",
        "Next best: C (25.0 %, 40.00 dB).",
        "Measured on shapes with DDIMScheduler, 50 steps, guidance 7.5. Other models and guidance scales give other "
        "figures. The speed-up counts the U-Net's multiply-accumulates; deepcache benchmark measures the time on a "
        "device.",
    ]
    cheaper = words(recommend_for_fidelity(GROUP, 29))
    assert cheaper[0].startswith("For a PSNR of 29 dB or more: use 12 steps without DeepCache.")
    assert cheaper[1] == (
        "Fewer steps are cheaper: the best settings of DeepCache are C with 4.00× (25.0 %) and 40.00 dB, 10.00 dB more."
    )
    both = group_of(("A", 0.5, 50.0), ("20 steps", 0.4, 55.0), ("25 steps", 0.5, 40.0))
    assert words(recommend_for_fidelity(both, 45))[1].startswith("Fewer steps are cheaper and closer to no caching: ")


def test_fewer_steps_are_recommended_if_nothing_else_reaches_the_goal():
    found = recommend_for_speed_up(GROUP, 4.1)
    assert (found.best["label"], found.deepcache, found.alternatives) == ("12 steps", None, [])
    assert words(found)[0].startswith("For a speed-up of 4.1 or more: use 12 steps without DeepCache.")
    assert words(found)[1] == (
        "No measured settings of DeepCache reach this goal; the fastest settings of DeepCache are C with 4.00× "
        "(25.0 %) and 40.00 dB."
    )


def test_ties_go_to_deepcache():
    equal = group_of(("20 steps", 0.4, 50.0), ("A", 0.4, 50.0))
    assert recommend_for_speed_up(equal, 2).best["label"] == recommend_for_fidelity(equal, 50).best["label"] == "A"


def test_missing_fewer_steps_are_reported():
    found = recommend_for_speed_up(group_of(("A", 0.5, 60.0)), 2)
    assert found.fewer_steps is None
    assert found.sentences[1] == "Fewer steps without caching were not measured, so that a fair comparison is missing."
    assert len(found.sentences) == 3


@pytest.mark.parametrize(
    ("recommend", "message"),
    [
        (
            lambda: recommend_for_speed_up(GROUP, 5),
            "nothing measured on shapes with DDIMScheduler, 50 steps, guidance 7.5 reaches a speed-up of 5 or more; "
            "the fastest settings of DeepCache are C with 4.00× (25.0 %) and 40.00 dB",
        ),
        (
            lambda: recommend_for_fidelity(GROUP, 61),
            "nothing measured on shapes with DDIMScheduler, 50 steps, guidance 7.5 reaches a PSNR of 61 dB or more; "
            "the closest settings of DeepCache are A with 2.00× (50.0 %) and 60.00 dB",
        ),
        (lambda: recommend_for_speed_up(GROUP, 0.9), "the speed-up must be a number >= 1, got 0.9"),
        (lambda: recommend_for_speed_up(GROUP, float("nan")), "the speed-up must be a number >= 1, got nan"),
        (lambda: recommend_for_speed_up(GROUP, float("inf")), "the speed-up must be a number >= 1, got inf"),
        (lambda: recommend_for_fidelity(GROUP, -1), "the PSNR must be a number of dB between 0 and 120, got -1"),
        (
            lambda: recommend_for_fidelity(GROUP, float("nan")),
            "the PSNR must be a number of dB between 0 and 120, got nan",
        ),
    ],
)
def test_an_unreachable_goal_is_an_error_with_the_limit(recommend, message):
    # A no-break space precedes the per cent sign.
    with pytest.raises(ValueError, match=f"^{re.escape(message.replace(' %', chr(0xA0) + '%'))}$"):
        recommend()


def test_recommendations_from_the_bundled_ablation_reach_the_goal():
    for group in Explorer.from_file(SHIPPED_ABLATION).groups:
        for speed_up in (1.2, 2, 3, 4):
            found = recommend_for_speed_up(group, speed_up)
            allowed = [cell["psnr"]["mean"] for cell in group.cells if cell["mac_share"] * speed_up <= 1]
            assert found.best["psnr"]["mean"] == max(allowed)
            assert 1 / found.best["mac_share"] >= speed_up
        for psnr in (35, 45, 55):
            best = recommend_for_fidelity(group, psnr).best
            assert best["mac_share"] == min(cell["mac_share"] for cell in group.cells if cell["psnr"]["mean"] >= psnr)
            assert best["psnr"]["mean"] >= psnr
