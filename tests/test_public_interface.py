"""The public names of `DeepCache`."""

from __future__ import annotations

import pytest

import DeepCache
from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache
from DeepCache.schedule import Schedule
from tests.engine.dummy_unet import DummyUNet, Pipeline


def test_every_public_name_can_be_imported_from_the_top():
    for name in DeepCache.__all__:
        assert getattr(DeepCache, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'DeepCache' has no attribute 'Nothing'"):
        _ = DeepCache.Nothing


def test_every_schedule_is_public():
    schedules = {kind.__name__ for kind in Schedule.__subclasses__() if kind.__module__ == "DeepCache.schedule"}
    assert schedules <= set(DeepCache.__all__)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"cache_interval": 3}, r"config must be a DeepCacheConfig, got \{'cache_interval': 3\}. .*\(\*\*config\)"),
        (3, r"config must be a DeepCacheConfig, got 3. Use DeepCacheConfig\(cache_interval=3\)"),
    ],
)
def test_config_of_another_type_is_refused_with_the_fix(config, message):
    pipe = Pipeline(DummyUNet())
    with pytest.raises(TypeError, match=message):
        apply_deepcache(pipe, config)
    engine = apply_deepcache(pipe, DeepCacheConfig(2))
    with pytest.raises(TypeError, match=message):
        engine.configure(config)
    assert engine.config == DeepCacheConfig(2)


def test_repr_of_the_helper_shows_its_settings():
    helper = DeepCacheSDHelper(Pipeline(DummyUNet()))
    assert repr(helper).startswith("<DeepCacheSDHelper off for Pipeline: DeepCacheConfig(cache_interval=3,")
    with helper:
        assert repr(helper).startswith("<DeepCacheSDHelper on for Pipeline: ")
