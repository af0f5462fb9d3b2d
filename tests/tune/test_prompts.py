import doctest

import pytest

import DeepCache.tune.prompts
from DeepCache.models import MODELS
from DeepCache.tune.prompts import bundled_prompts


@pytest.mark.parametrize("model", [*MODELS, "owner/name", "./folder"])
def test_there_are_enough_to_tune_and_to_check_on_and_none_comes_twice(model):
    prompts = bundled_prompts(model)
    assert len(prompts) >= 8 + 16
    assert len({prompt.lower() for prompt in prompts}) == len(prompts)


@pytest.mark.parametrize("model", ["shapes", "owner/name"])
def test_each_is_one_line_of_text_and_no_comment(model):
    for prompt in bundled_prompts(model):
        assert prompt == prompt.strip()
        assert prompt
        assert not prompt.startswith("#")


def test_the_shipped_model_has_prompts_in_its_own_words():
    shapes = {"circle", "square", "triangle", "star", "ring", "cross", "heart"}
    for prompt in bundled_prompts("shapes"):
        assert shapes & set(prompt.replace(",", "").split())
    assert not set(bundled_prompts("shapes")) & set(bundled_prompts("owner/name"))


def test_the_example_runs():
    result = doctest.testmod(DeepCache.tune.prompts)
    assert (result.attempted, result.failed) == (1, 0)
