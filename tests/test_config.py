import dataclasses
import json

import pytest

from DeepCache import DeepCacheConfig


def test_json_round_trip(tmp_path):
    config = DeepCacheConfig(cache_interval=5, cache_branch_id=2)
    assert DeepCacheConfig.from_json(config.to_json()) == config
    config.to_file(tmp_path / "config.json")
    assert DeepCacheConfig.from_file(tmp_path / "config.json") == config


def test_absent_keys_take_their_defaults():
    assert DeepCacheConfig.from_json('{"cache_interval": 7}') == DeepCacheConfig(cache_interval=7)


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DeepCacheConfig().cache_interval = 2  # type: ignore[misc]


def test_an_unknown_key_is_refused_by_name():
    with pytest.raises(ValueError, match=r"unknown key 'interval'.*cache_interval, cache_branch_id, skip_mode"):
        DeepCacheConfig.from_json('{"interval": 3}')


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_what_is_no_json_object_is_refused(text):
    with pytest.raises(ValueError, match="JSON"):
        DeepCacheConfig.from_json(text)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"cache_interval": 0}, ValueError, "cache_interval must be 1 or more, got 0"),
        ({"cache_interval": -3}, ValueError, "cache_interval must be 1 or more, got -3"),
        ({"cache_interval": 2.0}, TypeError, "cache_interval must be an int, got 2.0"),
        ({"cache_interval": True}, TypeError, "cache_interval must be an int, got True"),
        ({"cache_branch_id": -1}, ValueError, "cache_branch_id must be 0 or more, got -1"),
        ({"cache_branch_id": "0"}, TypeError, "cache_branch_id must be an int, got '0'"),
        ({"skip_mode": "random"}, ValueError, "skip_mode must be one of 'uniform', got 'random'"),
        ({"skip_mode": None}, TypeError, "skip_mode must be a str, got None"),
    ],
)
def test_bad_values_are_named_with_what_is_allowed(values, error, message):
    with pytest.raises(error, match=message):
        DeepCacheConfig(**values)
    with pytest.raises(error, match=message):
        DeepCacheConfig.from_json(json.dumps(values))
