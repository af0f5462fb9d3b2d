"""Images judged by their prompts: rendered scenes, whose answers are known."""

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load

from DeepCache.bench.summary import summary
from DeepCache.judge import JUDGED, Verdict, load_judge, shares
from DeepCache.judge.captions import parse_caption
from DeepCache.judge.judge import verdict
from DeepCache.judge.recogniser import Detection
from training.captions import held_out_scenes
from training.scenes import render, render_uint8

PROMPTS = (
    "a red circle",
    "a green heart on grass",
    "a blue square left of a yellow star",
    "a striped purple ring above a small pink triangle at night",
    "a big orange cross right of a cyan circle, with a green square below on snow",
)
FOLDER = files("DeepCache.judge")
FIGURES = json.loads((FOLDER / "shapes.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def judge():
    return load_judge("shapes")


def rendered(*prompts):
    return render([parse_caption(prompt) for prompt in prompts], torch.Generator().manual_seed(0))


def test_rendered_scenes_are_right(judge):
    verdicts = judge.verdicts(rendered(*PROMPTS), PROMPTS)
    assert [(one.objects, one.objects_right, one.found) for one in verdicts] == [(n, n, n) for n in (1, 1, 2, 2, 3)]
    assert all(one.image_right for one in verdicts)
    assert set(shares(verdicts).values()) == {1.0}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        # objects, objects_right, colour_right, shape_right, place_right, found
        ("a red square left of a yellow star", Verdict(2, 1, 1, 2, 2, 2)),
        ("a blue ring left of a yellow star", Verdict(2, 1, 2, 1, 2, 2)),
        ("a yellow star left of a blue square", Verdict(2, 0, 0, 0, 2, 2)),
        ("a blue square above a yellow star", Verdict(2, 0, 0, 0, 0, 2)),
        ("a big spotted blue square left of a yellow star on sand", Verdict(2, 2, 2, 2, 2, 2)),
    ],
    ids=["colour", "shape", "swapped", "place", "size, texture and background"],
)
def test_another_caption_is_wrong_in_the_property_that_differs(judge, prompt, expected):
    assert judge.verdicts(rendered("a blue square left of a yellow star"), [prompt]) == [expected]


def test_an_extra_object_makes_the_image_wrong_and_no_object():
    scene = parse_caption("a red circle")
    circle, other = Detection("red", "circle", 0.5, 0.5, 0.9), Detection("blue", "star", 0.1, 0.1, 0.8)
    both = verdict(scene, [circle, other])
    assert (both.share, both.image_right) == (1.0, False)
    assert verdict(scene, [circle]).image_right


def test_an_object_may_stand_slightly_off_its_place():
    for x, right in ((0.64, 1), (0.66, 0), (0.36, 1), (0.34, 0)):
        found = [Detection("red", "circle", x, 0.5, 0.9)]
        assert verdict(parse_caption("a red circle"), found).objects_right == right


def test_colour_and_shape_must_belong_to_one_object():
    found = [Detection("red", "square", 0.5, 0.5, 0.9), Detection("blue", "circle", 0.6, 0.5, 0.8)]
    assert verdict(parse_caption("a red circle"), found) == Verdict(1, 0, 1, 1, 1, 2)


def test_an_empty_image_shows_nothing(judge):
    assert judge.verdicts(torch.full((1, 3, 64, 64), 0.8), ["a red circle"]) == [Verdict(1, 0, 0, 0, 0, 0)]


def test_shares_of_objects_and_shares_of_images():
    verdicts = [Verdict(1, 1, 1, 1, 1, 1), Verdict(3, 0, 1, 2, 3, 3)]
    found = {"objects_right": 0.25, "colour_right": 0.5, "shape_right": 0.75, "place_right": 1.0, "images_right": 0.5}
    assert shares(verdicts) == found
    assert summary([one.share for one in verdicts])["mean"] == 0.5
    with pytest.raises(ValueError, match="verdicts must not be empty"):
        shares([])


def test_pil_images_and_other_types_are_judged_alike(judge):
    pixels = rendered(*PROMPTS)
    expected = judge.verdicts(pixels, PROMPTS)
    values = (pixels * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    for images in ([Image.fromarray(image) for image in values], pixels.bfloat16(), pixels.double()):
        assert judge.verdicts(images, PROMPTS) == expected


def test_weights_and_figures_belong_together(judge):
    data = (FOLDER / "shapes.safetensors").read_bytes()
    floating = [value for value in load(data).values() if value.is_floating_point()]
    assert {value.dtype for value in floating} == {torch.float16}
    assert FIGURES["parameters"] == sum(value.numel() for value in floating)
    assert FIGURES["bytes"] == len(data) < 600_000

    # The first chunk that the renderer makes of the measured 1,024.
    scenes = held_out_scenes(256, FIGURES["seed"])
    captions = [scene.caption for scene in scenes]
    verdicts = judge.verdicts(render_uint8(scenes, FIGURES["seed"] + 2) / 255, captions)
    wrong = [index for index, one in enumerate(verdicts) if not one.image_right]
    assert wrong == [index for index in FIGURES["renders_not_right"] if index < 256]


def test_committed_figures_meet_the_goal_and_are_on_the_page():
    assert FIGURES["renders"]["images"] == FIGURES["renders_through_vae"]["images"] == 1024
    assert FIGURES["renders"]["objects_right"] >= 0.99
    assert FIGURES["renders_through_vae"]["objects_right"] >= 0.99
    assert FIGURES["renders_with_the_next_caption"]["objects_right"] <= 0.03
    assert [row["guidance"] for row in FIGURES["generated_without_caching"]] == [2.0, 4.0, 7.5]
    measured = [FIGURES[name] for name in ("renders", "renders_through_vae", "renders_with_the_next_caption")]
    measured += FIGURES["generated_without_caching"]
    page = (Path(__file__).parents[2] / "training" / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| .* \| ([\d.]+) % \| ([\d.]+) % \|$", page, re.MULTILINE)
    assert shown == [(f"{100 * row['objects_right']:.1f}", f"{100 * row['images_right']:.1f}") for row in measured]


def test_other_prompts_are_refused_by_name_and_can_be_checked_early(judge):
    judge.check(PROMPTS)
    prompts = ["a red circle", "a bowl of soup"]
    for call in (lambda: judge.check(prompts), lambda: judge.verdicts(rendered(*["a red circle"] * 2), prompts)):
        with pytest.raises(ValueError, match=r"^'a bowl of soup' is not a prompt of the model 'shapes'; "):
            call()
    with pytest.raises(TypeError, match="got one string"):
        judge.check("a red circle")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 64, 64), "one entry per image, got 1 for 2 images"),
        (torch.zeros(1, 3, 128, 128), r"64x64 pixels for the judge, got the shape \(1, 3, 128, 128\)"),
        (torch.zeros(1, 1, 64, 64), r"3 channels and 64x64 pixels for the judge, got the shape \(1, 1, 64, 64\)"),
        (torch.full((1, 3, 64, 64), -1.0), "values in 0..1, got -1 to -1"),
        (torch.full((1, 3, 64, 64), torch.nan), "values in 0..1, got nan to nan"),
    ],
)
def test_wrong_images_are_refused(judge, images, message):
    with pytest.raises(ValueError, match=message):
        judge.verdicts(images, ["a red circle"])


@pytest.mark.parametrize("model", ["owner/name", "sd15", "/some/folder"])
def test_a_model_without_a_judge_is_refused(model):
    assert model not in JUDGED
    with pytest.raises(ValueError, match=f"the model '{model}' has no judge: .*Use the CLIP score"):
        load_judge(model)
