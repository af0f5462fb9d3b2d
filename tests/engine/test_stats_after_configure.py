"""What `stats` says of the last run stays readable until the next one starts, whatever is configured meanwhile."""

import pytest

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache
from tests.engine.tiny_pipeline import draw, tiny_pipeline
from tests.releases import COUNTS

pytestmark = COUNTS

OTHERS = [DeepCacheConfig(3, 4), DeepCacheConfig(2, 1), DeepCacheConfig(1), DeepCacheConfig(3, between="skipped")]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_other_settings_leave_the_stats_of_the_last_run(other):
    pipe = tiny_pipeline()
    engine = apply_deepcache(pipe, DeepCacheConfig(3, 1))
    draw(pipe)
    before = engine.stats
    engine.configure(other)
    assert (engine.stats, engine.pattern) == (before, "F..F..")
    draw(pipe, 4)
    assert len(engine.stats.pattern) == 4


def test_so_does_the_helper_which_is_not_read_before():
    pipe = tiny_pipeline()
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(3, 1)
    with helper:
        draw(pipe)
        helper.set_params(3, 4)
        assert helper.stats.pattern == "F..F.."
        assert 1 / 3 < helper.stats.mac_share < 0.7
    helper.set_params(2, 0)
    assert helper.stats.pattern == "F..F.."
