import pytest

from DeepCache.models import MODELS
from DeepCache.prompts import BUNDLED, bundled_prompt_set, bundled_prompts


@pytest.mark.parametrize("model", [*MODELS, "owner/name", "./folder"])
def test_prompts_are_unique_and_enough_for_tuning_and_validation(model):
    prompts = bundled_prompts(model)
    assert len(prompts) >= 8 + 16
    assert len({prompt.lower() for prompt in prompts}) == len(prompts)
    assert all(prompt and prompt == prompt.strip() and not prompt.startswith("#") for prompt in prompts)


def test_the_bundled_model_has_prompts_of_its_own_words():
    shapes = {"circle", "square", "triangle", "star", "ring", "cross", "heart"}
    for prompt in bundled_prompts("shapes"):
        assert shapes & set(prompt.replace(",", "").split())
    assert not set(bundled_prompts("shapes")) & set(bundled_prompts("owner/name"))


@pytest.mark.parametrize("name", BUNDLED)
def test_prompts_of_a_set_are_numbered(name):
    prompts = bundled_prompt_set(name)
    assert tuple(prompt.text for prompt in prompts) == bundled_prompts("shapes" if name == "shapes" else "owner/name")
    assert [prompt.id for prompt in prompts] == [str(number) for number in range(1, len(prompts) + 1)]
    assert len(prompts) == {"shapes": 40, "general": 64}[name]


def test_the_prompts_of_committed_plans_keep_their_places():
    general, shapes = bundled_prompts("owner/name"), bundled_prompts("shapes")
    assert general[0] == "a lighthouse on a cliff in a storm, waves breaking below"
    assert general[8] == "the skyline of a city at night, reflected in a river"
    assert general[31] == "a steam locomotive crossing a stone bridge"
    assert shapes[0] == "a blue square right of a yellow cross, with a yellow star below at night"
    assert shapes[39] == "a purple heart"


def test_unknown_sets_are_refused():
    with pytest.raises(ValueError, match="shapes and general, got 'coco'"):
        bundled_prompt_set("coco")
