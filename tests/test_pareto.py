"""Pareto fronts of cost and value."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from DeepCache.pareto import dominating, pareto_front
from tests.bench.properties import steady

# Few different values, so that some are equal.
ITEMS = st.lists(st.tuples(st.integers(1, 6).map(lambda tenth: tenth / 10), st.integers(20, 24)), max_size=8)


def front(items):
    return pareto_front(items, lambda item: item[0], lambda item: item[1])


def beats(one, other):
    """By the definition: no worse in either, and better in one."""
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@steady
@given(ITEMS)
def test_the_front_is_every_item_that_no_other_beats_in_order(items):
    assert front(items) == [item for item in items if not any(beats(other, item) for other in items)]
    for item in items:
        assert dominating(item, items, lambda each: each[0], lambda each: each[1]) == [
            other for other in items if beats(other, item)
        ]


def test_costs_that_differ_in_the_last_bits_are_equal():
    assert 0.1 + 0.2 > 0.3
    equal = [(0.1 + 0.2, 30), (0.3, 30)]
    assert front(equal) == equal
    assert front([(0.1 + 0.2, 31), (0.3, 30)]) == [(0.1 + 0.2, 31)]
