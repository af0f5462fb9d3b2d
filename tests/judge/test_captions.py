"""Captions of the model `shapes` and the scenes that they describe."""

import pytest

from DeepCache.judge.captions import Scene, SceneObject, parse_caption
from DeepCache.prompts import bundled_prompt_set
from training.captions import read_held_out, training_scenes


def test_parsing_inverts_captions():
    for scene in training_scenes(500, seed=1):
        assert parse_caption(scene.caption) == scene
    for caption in [*read_held_out(), *(prompt.text for prompt in bundled_prompt_set("shapes"))]:
        assert parse_caption(caption).caption == caption


def test_words_and_places():
    scene = parse_caption("a red circle left of a big striped blue square, with an orange star above on snow")
    objects = (
        SceneObject("red", "circle"),
        SceneObject("blue", "square", size="big", texture="striped"),
        SceneObject("orange", "star"),
    )
    assert scene == Scene(objects, relation="left of", third_place="above", background="on snow")
    # Two objects below, the third centred above them.
    assert scene.places == [(0.26, 0.74), (0.74, 0.74), (0.5, 0.26)]
    assert parse_caption("a pink heart at dusk").places == [(0.5, 0.5)]
    assert parse_caption("a red ring below a blue cross").places == [(0.5, 0.74), (0.5, 0.26)]
    beside = parse_caption("a red ring above a blue cross, with a green star on the left")
    assert beside.places == [(0.74, 0.26), (0.74, 0.74), (0.26, 0.5)]


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a photo of a cat",
        "a red circle.",
        "a Red circle",
        "a orange star",
        "an red circle",
        "a striped big red circle",
        "a brown circle",
        "a red circle under a blue square",
        "a red circle, with a blue square above",
        "a red circle above a blue square, with a green star above",
        "a red circle left of a blue square, with a green star on the left",
    ],
)
def test_other_prompts_are_refused_by_name(prompt):
    with pytest.raises(ValueError, match=r"is not a prompt of the model 'shapes'") as raised:
        parse_caption(prompt)
    assert str(raised.value).startswith(repr(prompt))
    assert "\n" not in str(raised.value)
