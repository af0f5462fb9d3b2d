import pytest

from DeepCache.schedule import UniformSchedule


@pytest.mark.parametrize(
    ("interval", "steps", "pattern"),
    [(1, 4, "FFFF"), (2, 5, "F.F.F"), (3, 7, "F..F..F"), (5, 1, "F"), (10, 4, "F..."), (3, 0, "")],
)
def test_every_interval_th_step_is_full(interval, steps, pattern):
    schedule = UniformSchedule(interval)
    assert schedule.pattern(steps) == pattern
    assert schedule.full_steps(steps) == pattern.count("F")


def test_only_an_interval_above_one_caches():
    assert not UniformSchedule(1).caches
    assert UniformSchedule(2).caches
