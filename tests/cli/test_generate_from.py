"""`deepcache generate` with LoRAs, embeddings, images to start from, and formats of images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionInpaintPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file

from DeepCache.generation import read_settings
from DeepCache.models import MODELS, load_pipeline, random_pipeline
from tests.cli.helpers import complain, image_of, pixels, same, settings_of
from tests.models.small_adapters import save_embedding, save_lora

GENERATE = ("generate", "a red circle", "--steps", 4)


def check_again(run, path):
    """Checks that the image can be regenerated from its metadata."""
    result = run("generate", "--from", path, "--json")
    assert same(image_of(result), path)
    assert f"Compared with {path}: identical pixels" in result.stderr
    assert "Differences" not in result.stderr


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """A LoRA for the shipped model with random weights."""
    return save_lora(tmp_path_factory.mktemp("lora"))


@pytest.fixture
def start(tmp_path):
    (tmp_path / "text.png").write_text("text")
    path = tmp_path / "start.png"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(path)
    return path


def test_json_contains_cost_and_fidelity(run):
    found = json.loads(run(*GENERATE, "--compare", "--json").stdout)
    (image,) = found["images"]
    assert found["files"] == [image["original"], image["file"], image["comparison"]]
    assert image["pattern"] == "F..F"
    assert (image["full_steps"], image["shallow_steps"], image["identical"]) == (2, 2, False)
    assert image["psnr"] > 10
    assert json.loads(run(*GENERATE, "--interval", 1, "--compare", "--json").stdout)["images"][0]["identical"]


@pytest.mark.parametrize("ending", ["webp", "jpg", "PNG"])
def test_the_ending_of_the_output_is_the_format(run, tmp_path, ending):
    for expected in (f"circle.{ending}", f"circle-2.{ending}"):
        assert image_of(run(*GENERATE, "--output", f"circle.{ending}", "--json")) == expected
    with Image.open(tmp_path / f"circle.{ending}") as image:
        assert image.format == {"webp": "WEBP", "jpg": "JPEG", "PNG": "PNG"}[ending]
    found = read_settings(tmp_path / f"circle.{ending}")
    assert (found["prompt"], found["seed"], found["settings"]["steps"]) == ("a red circle", 0, 4)


def test_a_lora_counts_by_its_scale(run, lora):
    plain = pixels(image_of(run(*GENERATE, "--json")))
    whole, half, none = (
        pixels(image_of(run(*GENERATE, "--json", "--lora", f"{lora}{scale}"))) for scale in ("", ":0.5", ":0")
    )
    assert abs(none - plain).max() <= 1
    assert 0 < abs(half - plain).mean() < abs(whole - plain).mean()


def test_a_lora_gives_the_image_of_diffusers(run, lora):
    pipe = load_pipeline("shapes", device="cpu")
    pipe.load_lora_weights(str(lora.parent), weight_name=lora.name)
    expected = pipe(
        "a red circle",
        num_inference_steps=4,
        guidance_scale=MODELS["shapes"].guidance,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    path = image_of(run(*GENERATE, "--interval", 1, "--json", "--lora", lora))
    assert np.array_equal(pixels(path), np.asarray(expected))
    assert settings_of(path)["loras"] == [[str(lora), 1.0]]
    check_again(run, path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lora", "nowhere.safetensors"), "there is no LoRA 'nowhere.safetensors'. Check the path"),
        (("--lora", ":0.5"), "a LoRA must be PATH or PATH:SCALE, got ':0.5'"),
        (("--embedding", "./nowhere.pt"), "there is no embedding './nowhere.pt'. Check the path"),
        (("--image", "nowhere.png"), "there is no image 'nowhere.png'. Check the path"),
        (("--image", "."), "cannot read the image '.': Is a directory"),
        (("--image", "start.png", "--mask", "nowhere.png"), "there is no image 'nowhere.png'. Check the path"),
        (("--image", "start.png", "--mask", "text.png"), "'text.png' is not an image"),
        (("--mask", "start.png"), "mask requires an initial image. Give --image too"),
        (("--image", "start.png", "--strength", "2"), "strength must be above 0 and at most 1, got 2"),
        (("--control-image", "start.png"), "--controlnet and --control-image require each other. Give both"),
        (
            ("--control-image", "start.png", "--controlnet", "./nowhere"),
            "there is no ControlNet folder './nowhere'; give a folder, or owner/name on the hub",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_invalid_options_are_refused_in_one_line(run, start, options, message):
    # Options are checked before the model is loaded, which does not exist either.
    result = run(*GENERATE, "--model", "./nowhere", *options)
    assert result.exit_code == 2
    assert result.stderr == f"deepcache: {message}\n"


def test_a_file_that_is_not_a_lora_is_refused(run, tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    complain(run(*GENERATE, "--lora", "other.safetensors"), "other.safetensors")


def test_an_embedding_changes_the_image(run, tmp_path):
    save_embedding(tmp_path / "mine.safetensors")
    plain = image_of(run("generate", "a mine circle", "--steps", 4, "--json"))
    path = image_of(run("generate", "a mine circle", "--steps", 4, "--json", "--embedding", "mine.safetensors"))
    assert not same(path, plain)
    assert settings_of(path)["embeddings"] == ["mine.safetensors"]
    check_again(run, path)


def test_strength_is_the_distance_from_the_start_image(run, start):
    weak, strong = (
        image_of(run(*GENERATE, "--image", start, "--strength", strength, "--json")) for strength in (0.3, 1.0)
    )
    original = pixels(start)
    assert abs(pixels(weak) - original).mean() < abs(pixels(strong) - original).mean()
    found = settings_of(weak)
    assert (found["pipeline"], found["strength"]) == ("StableDiffusionImg2ImgPipeline", 0.3)
    check_again(run, weak)


def test_inpainting_keeps_the_black_areas_of_the_mask(run, tmp_path, start):
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    mask.save(tmp_path / "mask.png")
    path = image_of(run(*GENERATE, "--image", start, "--mask", "mask.png", "--json"))
    assert settings_of(path)["pipeline"] == "StableDiffusionInpaintPipeline"
    check_again(run, path)
    changed = abs(pixels(path) - pixels(start)).mean(axis=(0, 2))
    assert changed[:24].mean() < changed[40:].mean()


def test_an_inpainting_model_requires_a_mask(run, tmp_path, start):
    parts = random_pipeline("sd15-tiny", device="cpu").components
    config = {**parts["unet"].config, "in_channels": 9, "_use_default_values": []}
    unet = UNet2DConditionModel.from_config(config)
    pipe = StableDiffusionInpaintPipeline(**parts | {"unet": unet}, requires_safety_checker=False)
    pipe.save_pretrained(tmp_path / "model")
    Image.new("L", (64, 64), 255).save(tmp_path / "mask.png")
    command = (*GENERATE, "--model", "model")
    for options in ((), ("--image", start)):
        complain(run(*command, *options), "Give --image and --mask")
    assert run(*command, "--image", start, "--mask", "mask.png").exit_code == 0


def test_a_controlnet_changes_the_image(run, tmp_path, start):
    torch.manual_seed(0)
    controlnet = ControlNetModel.from_unet(
        load_pipeline("shapes", device="cpu").unet, conditioning_embedding_out_channels=(16, 32, 96)
    )
    for block in controlnet.controlnet_down_blocks:
        torch.nn.init.normal_(block.weight, std=0.05)
    controlnet.save_pretrained(tmp_path / "control")
    path = image_of(run(*GENERATE, "--controlnet", "control", "--control-image", start, "--json"))
    assert settings_of(path)["pipeline"] == "StableDiffusionControlNetPipeline"
    assert not same(path, image_of(run(*GENERATE, "--json")))
    check_again(run, path)


@pytest.mark.parametrize(
    ("guidance", "scheduler", "forecast"), [(2, (), "limited"), (7.5, (), "limited"), (7.5, ("dpm++",), "response")]
)
def test_a_preset_depends_on_the_guidance_scale_and_the_scheduler(run, guidance, scheduler, forecast):
    options = ("--guidance", guidance, *(("--scheduler", *scheduler) if scheduler else ()))
    result = run(*GENERATE, *options, "--preset", "balanced", "--json")
    words = ("--interval", "3", "--between", "skipped", "--forecast", forecast)
    assert f"Preset balanced: {' '.join(words)}" in result.stderr
    # Compiling is not part of a preset.
    explicit = run(*GENERATE, *options, *words, "--json")
    assert same(image_of(result), image_of(explicit))
    assert settings_of(image_of(result))["forecast"] == forecast


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--preset", "best"), "preset must be one of faithful, balanced, fast, got 'best'"),
        # Even if it is the default.
        (("--preset", "fast", "--interval", 3), "--preset cannot be combined with --interval. Remove one of them"),
    ],
)
def test_invalid_presets_are_refused_in_one_line(run, options, message):
    complain(run(*GENERATE, *options), f"deepcache: {message}")
