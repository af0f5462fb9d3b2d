"""The verdicts on a group, with numbers made by hand."""

from __future__ import annotations

from DeepCache.bench.summary import summary
from DeepCache.report.fidelity import FidelityGroup
from DeepCache.report.findings import verdicts


def group_of(ways, right=None):
    """A group of two images; each way with its cost, PSNR values and, where judged, shares of right objects."""
    cells = []
    for label, (share, psnr, *judged) in ways.items():
        method = "fewer steps" if label.endswith(" steps") else "DeepCache"
        cell = {"method": method, "label": label, "mac_share": share, "psnr": summary(psnr), "right": None}
        cells.append(cell | ({"right": summary(judged[0])} if judged else {}))
    reference = {"right": right and summary(right), "seconds": 1.0}
    return FidelityGroup("DDIM", {"guidance": 7.5, "cells": cells, "reference": reference}, 2, 8, [])


def shown(group):
    return [verdict.replace("\xa0", " ") for verdict in verdicts(group)]


def test_fewer_steps_win_where_the_whole_interval_is_below_zero():
    # Against 20 steps: -2 ± 0, -1 ± 3.92 and +4 ± 0.
    group = group_of(
        {
            "lost": (0.4, [28.0, 38.0]),
            "undecided": (0.41, [27.0, 41.0]),
            "won": (0.42, [34.0, 44.0]),
            "20 steps": (0.4, [30.0, 40.0]),
            "10 steps": (0.2, [90.0, 90.0]),
        }
    )
    assert shown(group) == [
        "Fewer steps at the closest cost win against 1 of 3 settings of DeepCache: lost (20 steps are 2.00 dB closer)."
    ]
    assert [cell["label"] for cell in group.cells if group.fewer_steps_win(cell)] == ["lost"]


def test_where_fewer_steps_always_win_they_are_recommended():
    group = group_of({"a": (0.4, [28.0, 38.0]), "b": (0.4, [20.0, 30.0]), "20 steps": (0.4, [30.0, 40.0])})
    assert shown(group) == [
        "Fewer steps at the closest cost win against 2 of 2 settings of DeepCache: b (20 steps are 10.00 dB closer); "
        "a (20 steps are 2.00 dB closer). Use fewer steps here."
    ]


def test_where_fewer_steps_never_win_the_verdict_is_none():
    group = group_of({"a": (0.4, [31.0, 41.0]), "20 steps": (0.4, [30.0, 40.0])})
    assert shown(group) == ["Fewer steps at the closest cost win against none of the 1 settings of DeepCache."]


def test_of_many_six_are_named():
    ways = {f"way {number}": (0.4, [20.0 + number] * 2) for number in range(9)} | {"20 steps": (0.4, [40.0] * 2)}
    (text,) = shown(group_of(ways))
    assert text.count("dB closer") == 6
    assert "; and 3 more. Use fewer steps here." in text


def test_there_is_no_verdict_without_measurements():
    assert shown(group_of({"a": (0.4, [31.0, 41.0])})) == []
    assert shown(group_of({"20 steps": (0.4, [31.0, 41.0])})) == []


def test_a_changed_image_differs_from_a_wrong_one():
    group = group_of(
        {
            "broken": (0.1, [20.0, 20.0], [0.5, 0.5]),
            "other image": (0.2, [25.0, 25.0], [1.0, 1.0]),
            "same image": (0.3, [35.0, 35.0], [1.0, 1.0]),
            "9 steps": (0.3, [28.0, 28.0], [0.5, 1.0]),
        },
        right=[1.0, 1.0],
    )
    assert shown(group)[1:] == [
        "Right objects without caching: 100 %.",
        "Fewer objects are right with broken (50.0 % right).",
        "These change the image (PSNR below 30 dB) but not its rightness, as far as 2 images can show: "
        "other image (100 % right); 9 steps (75.0 % right).",
    ]


def test_where_nothing_changes_the_verdict_says_no_setting():
    group = group_of({"a": (0.3, [35.0, 35.0], [1.0, 0.5])}, right=[1.0, 0.5])
    assert shown(group) == [
        "Right objects without caching: 75.0 %.",
        "No setting changes the image visibly or makes fewer objects right.",
    ]
