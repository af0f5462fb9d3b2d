from __future__ import annotations

import json

import pytest

from DeepCache import DeepCacheConfig
from DeepCache.batch.differences import differences


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ({}, {}, ""),
        ({"a": 1, "b": {"c": [1, 2]}}, {"b": {"c": (1, 2)}, "a": 1}, ""),
        ({"a": 1}, {"a": 2}, "a is 1 there and 2 here"),
        ({"a": {"b": {"c": "x"}}}, {"a": {"b": {"c": "y"}}}, "a.b.c is 'x' there and 'y' here"),
        ({"a": 1}, {}, "a is 1 there and None here"),
        ({"b": 1, "a": 1}, {"b": 2, "a": 2}, "a is 1 there and 2 here; b is 1 there and 2 here"),
        ({"a": None}, {"a": {"b": 1}}, "a.b is None there and 1 here"),
    ],
)
def test_differences(there, here, said):
    assert differences(there, here) == said


def test_only_some_of_many_are_told():
    there, here = (dict.fromkeys("abcdef", value) for value in (1, 2))
    assert differences(there, here) == (
        "a is 1 there and 2 here; b is 1 there and 2 here; c is 1 there and 2 here; d is 1 there and 2 here; and 2 more"
    )


def test_settings_of_deepcache_are_the_same_after_json():
    settings = DeepCacheConfig(3, skip_mode="non-uniform").to_dict()
    assert differences(json.loads(json.dumps(settings)), settings) == ""


def test_long_values_are_cut_short():
    assert len(differences({"a": "x" * 9999, "b": list(range(9999))}, {"a": "y" * 9999, "b": []})) < 400
