import os
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
def test_samples_have_no_duplicates_and_keep_the_order(prompts, data):
    count = data.draw(st.integers(1, len(prompts)))
    seed = data.draw(st.integers(0, 2**63))
    numbered = tuple(enumerate(prompts))
    sample = sample_prompts(numbered, count, seed)
    assert len(sample) == len(set(sample)) == count
    assert set(sample) <= set(numbered)
    assert list(sample) == sorted(sample)
    assert sample == sample_prompts(list(numbered), count, seed)


def test_samples_are_those_of_python_and_differ_between_seeds():
    assert sample_prompts(HUNDRED, 5, 0) == ("prompt 5", "prompt 33", "prompt 49", "prompt 53", "prompt 97")
    places = sorted(random.Random(7).sample(range(100), 5))
    assert sample_prompts(HUNDRED, 5, 7) == tuple(HUNDRED[place] for place in places)
    assert len({sample_prompts(HUNDRED, 5, seed) for seed in range(50)}) == 50


def test_samples_do_not_depend_on_the_process():
    code = (
        "from DeepCache.prompts import Prompt, sample_prompts\n"
        "print(sample_prompts([Prompt(str(n), str(n)) for n in range(50)], 3, 4))"
    )
    random.seed(1)
    here = sample_prompts([Prompt(str(number), str(number)) for number in range(50)], 3, 4)
    for hash_seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.stdout.strip() == repr(here), done.stderr


@pytest.mark.parametrize(
    ("prompts", "count", "seed", "message"),
    [
        *((HUNDRED, count, 0, f"between 1 and 100, got {count}") for count in (-1, 0, 101)),
        ((), 1, 0, "between 1 and 0, got 1"),
        (HUNDRED, 1, -1, "seed of the sample must be >= 0, got -1"),
    ],
)
def test_wrong_arguments_are_refused(prompts, count, seed, message):
    with pytest.raises(ValueError, match=message):
        sample_prompts(prompts, count, seed)
