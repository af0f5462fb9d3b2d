"""Generates images with the bundled model, and reads their settings back."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from DeepCache import DeepCacheConfig, Plan
from DeepCache.generation import (
    GenerationSettings,
    OutputFolder,
    check_against_pipeline,
    compare_side_by_side,
    generate,
    parse_size,
    prepare_pipeline,
    read_settings,
)
from DeepCache.generation.metadata import read_notes, with_notes
from DeepCache.generation.pipeline_call import pipeline_call
from DeepCache.models import load_pipeline
from DeepCache.schedule import Step, StepSchedule


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("shapes", device="cpu", progress_bar=False)


def run(pipe, folder, **options):
    settings = GenerationSettings(prompts=("a red circle",), steps=6, cache=DeepCacheConfig(3, 1))
    return list(generate(pipe, settings, OutputFolder(folder), **options))


def test_result_has_statistics_and_fidelity(pipe, tmp_path):
    (image,) = run(pipe, tmp_path, compare=True)
    assert image.stats.pattern == "F..F.."
    assert (image.stats.full_steps, image.stats.shallow_steps) == (2, 4)
    assert 0 < image.stats.mac_share < 1
    assert image.stats.bytes_kept > 0
    assert image.psnr > 0
    assert image.ssim <= 1
    assert image.speed_up == image.original.seconds / image.accelerated.seconds
    assert not pipe.unet._forward_pre_hooks


def test_steps_are_reported(pipe, tmp_path):
    steps = []
    run(pipe, tmp_path, compare=True, on_step=steps.append)
    assert [(step.accelerated, step.pattern) for step in steps[5::6]] == [(False, "FFFFFF"), (True, "F..F..")]
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6] * 2
    assert {step.steps for step in steps} == {6}


def test_deepcache_is_removed_when_the_caller_stops(pipe, tmp_path):
    images = generate(pipe, GenerationSettings(prompts=("x", "y"), steps=2), OutputFolder(tmp_path))
    next(images)
    images.close()
    assert not pipe.unet._forward_pre_hooks


def test_image_to_image_pipelines_are_refused(pipe, tmp_path):
    from diffusers import StableDiffusionImg2ImgPipeline

    other = StableDiffusionImg2ImgPipeline(**pipe.components)
    with pytest.raises(ValueError, match="Img2Img"):
        next(generate(other, GenerationSettings(prompts=("x",)), OutputFolder(tmp_path)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "there is no prompt"),
        ([GenerationSettings(steps=2)], "there is no prompt"),
        (
            [GenerationSettings(("x",), steps=2), GenerationSettings(("x",), steps=3)],
            "steps must be the same for all images, got 2 and 3",
        ),
        (
            [GenerationSettings(("x",), steps=2), GenerationSettings(("x",), steps=2, cache=DeepCacheConfig(2))],
            "cache must be the same for all images",
        ),
    ],
)
def test_settings_without_prompts_or_with_differences_are_refused(pipe, tmp_path, settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        list(generate(pipe, settings, OutputFolder(tmp_path)))


class Bare:
    """A pipeline with a prompt and no other settings."""

    def __init__(self):
        self.scheduler = SimpleNamespace(config=SimpleNamespace())

    def __call__(self, prompt, num_inference_steps=50, generator=None):
        raise AssertionError("nothing is generated")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"guidance": 2.0}, "a Bare does not support a guidance scale, got 2. Remove it"),
        ({"negative_prompt": "a star"}, "a Bare does not support a negative prompt, got 'a star'. Remove it"),
        ({"size": (64, 72)}, "a Bare does not support a size, got 64x72. Remove it"),
    ],
)
def test_unsupported_settings_are_refused(values, message):
    check_against_pipeline(GenerationSettings(("x",), model="bare"), Bare())
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_against_pipeline(GenerationSettings(("x",), model="bare", **values), Bare())


def test_a_negative_prompt_requires_guidance(pipe):
    # The recommended guidance scale of the bundled model is 2; that of another one is its pipeline's default, 7.5.
    for values in ({}, {"model": "other"}, {"guidance": 1.1}):
        check_against_pipeline(GenerationSettings(("x",), negative_prompt="a star", **values), pipe)
    for guidance in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"above 1, got {guidance:g}. Remove the negative prompt, or increase"):
            check_against_pipeline(GenerationSettings(("x",), negative_prompt="a star", guidance=guidance), pipe)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompts": ("x", " ")}, "a prompt must not be empty"),
        ({"prompts": ("\ud800",)}, "a prompt is not valid text"),
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"images_per_prompt": 0}, "images per prompt must be 1 or more, got 0"),
        ({"guidance": -1.0}, "guidance must be >= 0, got -1"),
        ({"prompts": ("x", "y"), "seed": 2**63 - 1}, r"seed must be between 0 and 2\*\*63 - 2, got"),
        ({"runtime": "tensorrt"}, "runtime must be one of torch"),
        (
            {"steps": 6, "cache": DeepCacheConfig(plan=Plan(StepSchedule((Step(True),)), {}, {}, tuned={"steps": 5}))},
            "the plan was tuned for 5 steps, got 6",
        ),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        GenerationSettings(**{"prompts": ("x",), **values})


def test_the_pipeline_is_prepared_as_the_settings_say(tmp_path):
    settings = GenerationSettings(scheduler="euler", dtype="bfloat16", vae_tiling=True)
    pipe = prepare_pipeline(settings, device="cpu", vae_slicing=True)
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    assert (pipe.dtype, pipe.vae.use_tiling, pipe.vae.use_slicing) == (torch.bfloat16, True, True)
    with pytest.raises(ValueError, match="offload must be one of"):
        prepare_pipeline(settings, offload="disk")


def test_a_call_has_one_generator_per_seed():
    one = pipeline_call(None, "x", 7, steps=2)
    assert (one["prompt"], one["generator"].initial_seed()) == ("x", 7)
    assert one.keys() == {"prompt", "num_inference_steps", "generator"}
    call = pipeline_call(None, ("x", "y"), range(2), steps=2, guidance=3.0, negative_prompt=("", "z"), size=(8, 16))
    assert [generator.initial_seed() for generator in call.pop("generator")] == [0, 1]
    assert call == {
        "prompt": ["x", "y"],
        "num_inference_steps": 2,
        "negative_prompt": ["", "z"],
        "guidance_scale": 3.0,
        "width": 8,
        "height": 16,
    }


def test_names_and_numbers_of_files(tmp_path):
    folder = OutputFolder(tmp_path / "a" / "b")
    assert folder.new_stem("A red, RED circle!", 7) == "0001-a-red-red-circle-seed7"
    assert folder.new_stem("★/..\\", 0) == "0001-seed0"
    assert len(folder.new_stem("long " * 100, 0)) < 60
    (folder.path / "0041-x.png").touch()
    assert folder.new_stem("Öl", 0) == "0042-öl-seed0"


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    folder = OutputFolder(tmp_path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        folder.save(Image.new("RGB", (8, 8)), "x", {})
    assert list(tmp_path.iterdir()) == []
    assert folder.written == []


def test_settings_are_read_back(pipe, tmp_path):
    (image,) = run(pipe, tmp_path)
    path = image.accelerated.path
    notes = read_settings(path)
    assert (notes["prompt"], notes["seed"]) == ("a red circle", 0)
    assert notes["settings"]["cache_branch_id"] == 1
    assert read_notes(path.read_bytes()) == read_notes(path)
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    with pytest.raises(ValueError, match="no settings"):
        read_settings(tmp_path / "other.png")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_every_format_has_the_metadata(kind):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format=kind, **with_notes(kind, {"prompt": "é", "steps": {"full": 2}}))
    assert read_notes(file.getvalue()).items() >= {"prompt": "é", "steps": '{"full": 2}'}.items()


@pytest.mark.parametrize(
    ("text", "size"), [("64", (64, 64)), ("512x768", (512, 768)), (" 8X16 ", (8, 16)), ("8×9", (8, 9))]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "64x", "-64", "6.4", "64x64x64", "1e3"])
def test_invalid_sizes_are_refused(text):
    with pytest.raises(ValueError, match="512x768"):
        parse_size(text)


def test_each_image_has_the_next_seed():
    settings = GenerationSettings(prompts=("x", "y"), images_per_prompt=2, seed=5)
    assert list(settings.jobs()) == [("x", 5), ("x", 6), ("y", 7), ("y", 8)]


def test_side_by_side_separates_the_images():
    left, right = Image.new("RGB", (64, 32), "red"), Image.new("RGB", (64, 32), "blue")
    sheet = compare_side_by_side(left, right, title="long " * 100, captions=(["a"], ["b", "c" * 300]))
    colours = {colour for _, colour in sheet.getcolors(maxcolors=sheet.width * sheet.height)}
    assert {(255, 0, 0), (0, 0, 255)} <= colours
    row = next(y for y in range(sheet.height) if sheet.getpixel((20, y)) == (255, 0, 0)) + 10
    assert sheet.getpixel((sheet.width - 20, row)) == (0, 0, 255)
    assert sheet.getpixel((sheet.width // 2, row)) == (255, 255, 255)


def test_large_images_are_not_enlarged():
    image = Image.new("RGB", (512, 512))
    assert compare_side_by_side(image, image, title="x", captions=([], [])).width == 2 * 512 + 3 * 16
