"""Ablations of format 1, which had one guidance scale, are read as ones of the current format."""

from __future__ import annotations

import pytest

from DeepCache.bench.result_file import ABLATION_FORMAT, read_result, resumed_result, write_result
from DeepCache.bench.summary import percentile_5
from tests.report.made_up_results import ablation, in_format_1


@pytest.fixture
def older(tmp_path):
    path = tmp_path / "older.json"
    write_result(path, in_format_1(ablation(guidances=(2.5,), clip=True)))
    return path


def test_an_older_file_is_read_as_one_of_today(older):
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


def test_groups_that_were_not_reached_are_read(tmp_path):
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
def test_a_damaged_older_file_is_refused_by_its_name(tmp_path, change, words):
    result = in_format_1(ablation())
    change(result["groups"][0]["cells"][0])
    write_result(tmp_path / "older.json", result)
    with pytest.raises(ValueError, match=rf"older\.json' is damaged: .*{words}"):
        read_result(tmp_path / "older.json")


def test_an_older_file_is_not_resumed(older):
    with pytest.raises(ValueError, match='format is "DeepCache ablation 1" there and "DeepCache ablation 2" now'):
        resumed_result(older, ablation())
