from __future__ import annotations

from types import SimpleNamespace

import pytest
from PIL import Image

from DeepCache import DeepCacheConfig
from DeepCache.generation import (
    GenerationSettings,
    OutputFolder,
    check_against_pipeline,
    compare_side_by_side,
    generate,
    parse_size,
    read_settings,
)
from DeepCache.models import load_pipeline


def draw(tmp_path, **options):
    pipe = load_pipeline("shapes", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    settings = GenerationSettings(prompts=("a red circle",), steps=6, cache=DeepCacheConfig(3, 1))
    return pipe, list(generate(pipe, settings, OutputFolder(tmp_path), **options))


def test_result_tells_what_was_done(tmp_path):
    pipe, (image,) = draw(tmp_path, compare=True)
    assert image.stats.pattern == "F..F.."
    assert (image.stats.full_steps, image.stats.shallow_steps) == (2, 4)
    assert 0 < image.stats.mac_share < 1
    assert image.stats.bytes_kept > 0
    assert image.psnr > 0
    assert image.ssim <= 1
    assert image.speed_up == image.original.seconds / image.accelerated.seconds
    assert not pipe.unet._forward_pre_hooks


def test_steps_are_told(tmp_path):
    steps = []
    draw(tmp_path, compare=True, on_step=steps.append)
    assert [(step.accelerated, step.pattern) for step in steps[5::6]] == [(False, "FFFFFF"), (True, "F..F..")]
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6] * 2
    assert {step.steps for step in steps} == {6}


def test_deepcache_is_taken_off_when_the_caller_stops(tmp_path):
    pipe = load_pipeline("shapes", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    images = generate(pipe, GenerationSettings(prompts=("x", "y"), steps=2), OutputFolder(tmp_path))
    next(images)
    images.close()
    assert not pipe.unet._forward_pre_hooks


def test_pipelines_that_draw_from_images_are_refused(tmp_path):
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = StableDiffusionImg2ImgPipeline(**load_pipeline("shapes", device="cpu").components)
    with pytest.raises(ValueError, match="Img2Img"):
        next(generate(pipe, GenerationSettings(prompts=("x",)), OutputFolder(tmp_path)))


class Bare:
    """A pipeline that takes a prompt and nothing else to choose."""

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
def test_what_a_pipeline_does_not_take_is_refused(values, message):
    check_against_pipeline(GenerationSettings(("x",), model="bare"), Bare())
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_against_pipeline(GenerationSettings(("x",), model="bare", **values), Bare())


def test_a_negative_prompt_counts_only_where_there_is_guidance():
    pipe = load_pipeline("shapes", device="cpu")
    # The recommended guidance of the bundled model is 2, and that of another its pipeline's default, 7.5.
    for values in ({}, {"model": "other"}, {"guidance": 1.1}):
        check_against_pipeline(GenerationSettings(("x",), negative_prompt="a star", **values), pipe)
    for guidance in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"above 1, got {guidance:g}. Remove the negative prompt, or increase"):
            check_against_pipeline(GenerationSettings(("x",), negative_prompt="a star", guidance=guidance), pipe)


def test_names_and_numbers_of_files(tmp_path):
    folder = OutputFolder(tmp_path / "a" / "b")
    assert folder.new_stem("A red, RED circle!", 7) == "0001-a-red-red-circle-seed7"
    assert folder.new_stem("★/..\\", 0) == "0001-seed0"
    assert len(folder.new_stem("long " * 100, 0)) < 60
    (folder.path / "0041-x.png").touch()
    assert folder.new_stem("Öl", 0) == "0042-öl-seed0"


def test_file_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    folder = OutputFolder(tmp_path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        folder.save(Image.new("RGB", (8, 8)), "x", {})
    assert list(tmp_path.iterdir()) == []
    assert folder.written == []


def test_settings_are_read_back(tmp_path):
    _, (image,) = draw(tmp_path)
    notes = read_settings(image.accelerated.path)
    assert (notes["prompt"], notes["seed"]) == ("a red circle", 0)
    assert notes["settings"]["cache_branch_id"] == 1
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    with pytest.raises(ValueError, match="no settings"):
        read_settings(tmp_path / "other.png")


@pytest.mark.parametrize(
    ("text", "size"), [("64", (64, 64)), ("512x768", (512, 768)), (" 8X16 ", (8, 16)), ("8×9", (8, 9))]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "64x", "-64", "6.4", "64x64x64", "1e3"])
def test_sizes_that_are_none(text):
    with pytest.raises(ValueError, match="512x768"):
        parse_size(text)


def test_jobs_number_the_seeds_on():
    settings = GenerationSettings(prompts=("x", "y"), images_per_prompt=2, seed=5)
    assert list(settings.jobs()) == [("x", 5), ("x", 6), ("y", 7), ("y", 8)]


def test_side_by_side_keeps_the_images_apart():
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
