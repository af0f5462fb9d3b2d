"""Rows of prompt files, and their ids."""

from __future__ import annotations

import pytest

from DeepCache.batch import BatchRow, batch_row
from DeepCache.prompts import Row


def row(copy=0, place="line 1", **values):
    return batch_row(Row(place, values), copy)


def test_values_of_a_row():
    found = row(prompt=" a red circle ", id="first", seed=7, negative_prompt="a star", size="64x72")
    assert found == BatchRow(found.id, "first", "a red circle", "a star", 7, (64, 72))
    found = row(caption="a red circle")
    assert found == BatchRow(found.id, "", "a red circle", None, None, None)


@pytest.mark.parametrize("nothing", [None, "", "  "])
def test_empty_values_are_ignored(nothing):
    names = ("id", "seed", "negative_prompt", "negative", "size", "width", "height")
    assert row(text="x", **dict.fromkeys(names, nothing)) == row(text="x")


def test_ids_are_the_same_on_every_machine():
    assert row(prompt="a red circle").id == "118385506d962089d44923b5"
    assert row(prompt="a red circle").seed_for(0) == 0x612D7CF3


def test_ids_do_not_depend_on_the_place_and_the_spelling_of_values():
    plain = row(prompt="x", seed=7, size="64x72", negative_prompt="y", id="3")
    assert row(place="row 9", prompt="x", seed=7, size="64x72", negative_prompt="y", id="3") == plain
    assert row(text="x ", seed="7", width="64", height=72.0, negative="y", id=3) == plain
    assert row(prompt="x", seed=7.0, size=" 64×72", negative_prompt="y", id="3", category="z", other=[1]) == plain
    for size in (64, "64", 64.0, "64x64"):
        assert row(prompt="x", size=size).size == (64, 64)


def test_ids_depend_on_every_value():
    rows = [
        row(prompt="x"),
        row(prompt="y"),
        row(prompt="x", id="1"),
        row(prompt="x", seed=0),
        row(prompt="x", seed=1),
        row(prompt="x", negative_prompt="y"),
        row(prompt="x", size=64),
        row(prompt="x", size="64x72"),
        row(prompt="x", size="72x64"),
        row(1, prompt="x"),
        row(2, prompt="x"),
        *(row(prompt=""), row(1, prompt=""), row(place="line 2", prompt=""), row(prompt="", id="a")),
    ]
    assert len({each.id for each in rows}) == len(rows)
    assert all(set(each.id) <= set("0123456789abcdef") and len(each.id) == 24 for each in rows)


def test_seeds_are_those_of_the_rows_or_derived_from_ids_and_the_seed_of_the_settings():
    for seed in (0, 2**63 - 1):
        assert row(prompt="x", seed=seed).seed_for(5) == seed
    seeds = [row(copy, prompt="x").seed_for(seed) for copy in range(2) for seed in range(2)]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert row(prompt="x").seed_for(0) == seeds[0]


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"prompt": ""}, "line 1: the prompt must not be empty"),
        ({"prompt": None}, "line 1: the prompt must be text, got None"),
        ({"prompt": 3}, "line 1: the prompt must be text, got 3"),
        ({"category": "x"}, "line 1 must have a 'prompt', 'caption' or 'text', got ['category']"),
        ({"prompt": "x", "seed": "abc"}, "line 1: the seed must be a whole number from 0 to 2**63 - 1, got 'abc'"),
        ({"prompt": "x", "seed": -1}, "line 1: the seed must be a whole number from 0 to 2**63 - 1, got -1"),
        ({"prompt": "x", "seed": "-1"}, "line 1: the seed must be a whole number from 0 to 2**63 - 1, got '-1'"),
        ({"prompt": "x", "seed": 0.5}, "line 1: the seed must be a whole number from 0 to 2**63 - 1, got 0.5"),
        ({"prompt": "x", "seed": True}, "line 1: the seed must be a whole number from 0 to 2**63 - 1, got True"),
        ({"prompt": "x", "seed": "²"}, "line 1: the seed must be a whole number from 0 to 2**63 - 1, got '²'"),
        (
            {"prompt": "x", "seed": float("nan")},
            "line 1: the seed must be a whole number from 0 to 2**63 - 1, got nan",
        ),
        (
            {"prompt": "x", "size": "big"},
            "line 1: a size must be WIDTHxHEIGHT such as 512x768, or one number, got 'big'",
        ),
        (
            {"prompt": "x", "size": [64, 64]},
            "line 1: a size must be WIDTHxHEIGHT such as 512x768, or one number, got '[64, 64]'",
        ),
        ({"prompt": "x", "width": 64}, "line 1: width and height must be two whole numbers >= 1, got 64 and None"),
        (
            {"prompt": "x", "width": 64, "height": 0},
            "line 1: width and height must be two whole numbers >= 1, got 64 and 0",
        ),
        ({"prompt": "x", "negative": 3}, "line 1: the negative must be text, got 3"),
        ({"prompt": "x", "id": 1.5}, "line 1: the id must be text or a whole number, got 1.5"),
    ],
)
def test_a_row_that_cannot_be_used_has_an_error(values, error):
    found = row(**values)
    assert found.error == error
    assert len(found.id) == 24
    assert found.seed is None


def test_a_wrong_row_keeps_its_id_and_its_prompt():
    found = row(prompt="x", id="seven", seed=2**63)
    assert "2**63 - 1" in found.error
    assert (found.row_id, found.prompt) == ("seven", "x")
    found = batch_row(Row("line 2", {}, error="line 2 is not JSON"))
    assert (found.error, found.prompt, found.row_id) == ("line 2 is not JSON", "", "")
    found = row(prompt="x\ud83d", id="\ud83d")
    assert "valid text" in found.error
    assert found.to_json().encode()


def test_rows_can_be_read_from_their_json():
    for each in (row(prompt="ein Kreis ★", seed=1, size="64x72"), row(prompt="x"), row(prompt="")):
        assert BatchRow.from_json(each.to_json()) == each
