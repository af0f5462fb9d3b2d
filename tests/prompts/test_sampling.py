import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from DeepCache.prompts import Prompt, sample_prompts

HUNDRED = tuple(f"prompt {number}" for number in range(100))


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(), min_size=1), st.data())
def test_it_draws_that_many_none_twice_and_keeps_the_order(prompts, data):
    count = data.draw(st.integers(1, len(prompts)))
    seed = data.draw(st.integers(0, 2**63))
    numbered = tuple(enumerate(prompts))
    drawn = sample_prompts(numbered, count, seed)
    assert len(drawn) == len(set(drawn)) == count
    assert set(drawn) <= set(numbered)
    assert list(drawn) == sorted(drawn)
    assert drawn == sample_prompts(list(numbered), count, seed)


def test_the_choice_is_that_of_python_and_another_seed_chooses_others():
    assert sample_prompts(HUNDRED, 5, 0) == ("prompt 5", "prompt 33", "prompt 49", "prompt 53", "prompt 97")
    assert sample_prompts(HUNDRED, 5, 7) == tuple(
        HUNDRED[place] for place in sorted(random.Random(7).sample(range(100), 5))
    )
    assert len({sample_prompts(HUNDRED, 5, seed) for seed in range(50)}) == 50


def test_neither_the_hash_seed_nor_what_was_drawn_before_changes_it():
    code = (
        "from DeepCache.prompts import Prompt, sample_prompts\n"
        "print(sample_prompts([Prompt(str(n), str(n)) for n in range(50)], 3, 4))"
    )
    random.seed(1)
    here = sample_prompts([Prompt(str(number), str(number)) for number in range(50)], 3, 4)
    for hash_seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONHASHSEED": hash_seed}
        )
        assert done.stdout.strip() == repr(here), done.stderr


@pytest.mark.parametrize("count", [-1, 0, 101])
def test_counts_that_there_are_not(count):
    with pytest.raises(ValueError, match=f"from 1 to the 100 that there are, got {count}"):
        sample_prompts(HUNDRED, count, 0)


def test_nothing_to_draw_from():
    with pytest.raises(ValueError, match="the 0 that there are, got 1"):
        sample_prompts((), 1, 0)


def test_a_seed_below_0():
    with pytest.raises(ValueError, match="0 or more, got -1"):
        sample_prompts(HUNDRED, 1, -1)
