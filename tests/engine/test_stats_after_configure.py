"""The `stats` of the last run stay readable until the next one starts, regardless of changed settings."""

import pytest

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache
from tests.engine.tiny_pipeline import generate, tiny_pipeline
from tests.releases import COUNTS

pytestmark = COUNTS

OTHERS = [DeepCacheConfig(3, 4), DeepCacheConfig(2, 1), DeepCacheConfig(1), DeepCacheConfig(3, between="skipped")]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_other_settings_leave_the_stats_of_the_last_run(other):
    pipe = tiny_pipeline()
    engine = apply_deepcache(pipe, DeepCacheConfig(3, 1))
    generate(pipe)
    before = engine.stats
    engine.configure(other)
    assert (engine.stats, engine.pattern) == (before, "F..F..")
    generate(pipe, 4)
    assert len(engine.stats.pattern) == 4


def test_the_helper_keeps_the_stats_too():
    pipe = tiny_pipeline()
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(3, 1)
    with helper:
        generate(pipe)
        helper.set_params(3, 4)
        assert helper.stats.pattern == "F..F.."
        assert 1 / 3 < helper.stats.mac_share < 0.7
    helper.set_params(2, 0)
    assert helper.stats.pattern == "F..F.."
