from __future__ import annotations

import json

import pytest

from DeepCache import DeepCacheConfig
from DeepCache.generation.differences import settings_differences


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({}, {}, ""),
        ({"a": 1, "b": {"c": [1, 2]}}, {"b": {"c": (1, 2)}, "a": 1}, ""),
        ({"a": 1}, {"a": 2}, "a was 1 and is 2 now"),
        ({"a": {"b": {"c": "x"}}}, {"a": {"b": {"c": "y"}}}, "a.b.c was 'x' and is 'y' now"),
        ({"a": 1}, {}, "a was 1 and is None now"),
        ({"b": 1, "a": 1}, {"b": 2, "a": 2}, "a was 1 and is 2 now; b was 1 and is 2 now"),
        ({"a": None}, {"a": {"b": 1}}, "a.b was None and is 1 now"),
    ],
)
def test_differences(before, now, expected):
    assert settings_differences(before, now) == expected


def test_only_some_of_many_are_shown():
    before, now = (dict.fromkeys("abcdef", value) for value in (1, 2))
    assert settings_differences(before, now) == (
        "a was 1 and is 2 now; b was 1 and is 2 now; c was 1 and is 2 now; d was 1 and is 2 now; and 2 more"
    )


def test_settings_do_not_differ_from_their_json():
    settings = DeepCacheConfig(3, skip_mode="non-uniform").to_dict()
    assert settings_differences(json.loads(json.dumps(settings)), settings) == ""


def test_long_values_are_shortened():
    assert len(settings_differences({"a": "x" * 9999, "b": list(range(9999))}, {"a": "y" * 9999, "b": []})) < 400
