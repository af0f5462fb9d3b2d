"""`--offload` and `--vae-tiling` of `deepcache generate` and `batch`, and `--vae-slicing` of `batch`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, DiffusionPipeline
from PIL import Image

from DeepCache.generation import prepare, read_settings
from DeepCache.models import load_pipeline, memory
from tests.cli.helpers import image_of, pixels, same, settings_of
from tests.models.small_adapters import save_lora
from tests.models.test_memory import sequentially

GENERATE = ("generate", "a red circle", "--steps", 4, "--json")


@pytest.fixture
def offloaded(monkeypatch):
    """Offloading from the CPU; holds the pipelines that are offloaded."""
    found = []
    offload = memory.offload_pipeline

    def noted(pipe, *arguments):
        found.append(pipe)
        offload(pipe, *arguments)

    monkeypatch.setattr(prepare, "offload_pipeline", noted)
    monkeypatch.setattr(memory, "offload_device", lambda offload, device=None: torch.device("cpu"))
    monkeypatch.setattr(DiffusionPipeline, "enable_sequential_cpu_offload", sequentially)
    return found


@pytest.mark.parametrize("offload", memory.OFFLOADS)
def test_offloading_changes_neither_the_image_nor_its_metadata(run, offloaded, offload):
    plain, path = (image_of(run(*GENERATE, *options)) for options in ((), ("--offload", offload)))
    assert same(path, plain)
    found, expected = read_settings(path), read_settings(plain)
    # The device that computed it; diffusers adds a number to the CPU.
    assert found["settings"].pop("device").removesuffix(":0") == expected["settings"].pop("device")
    assert found == expected
    assert len(offloaded) == 1


def test_with_a_comparison_and_without_caching(run):
    options = ("--offload", "group", "--device", "cpu", "--compare")
    image = json.loads(run(*GENERATE, *options, "--interval", 1).stdout)["images"][0]
    assert (image["identical"], image["pattern"]) == (True, "FFFF")
    image = json.loads(run(*GENERATE, *options).stdout)["images"][0]
    plain = json.loads(run(*GENERATE, "--compare").stdout)["images"][0]
    assert (image["pattern"], image["psnr"]) == ("F..F", plain["psnr"])


def test_the_pipeline_that_starts_from_images_is_offloaded_with_loras_and_controlnet(run, tmp_path, offloaded):
    Image.new("RGB", (64, 64), (200, 30, 30)).save("start.png")
    lora = save_lora(tmp_path / "lora")
    unet = load_pipeline("shapes", device="cpu").unet
    torch.manual_seed(0)
    ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 96)).save_pretrained("control")
    options = ("--lora", lora, "--image", "start.png", "--controlnet", "control", "--control-image", "start.png")
    plain, path = (image_of(run(*GENERATE, *options, *more)) for more in ((), ("--offload", "model")))
    assert same(path, plain)
    (pipe,) = offloaded
    assert type(pipe).__name__ == "StableDiffusionControlNetImg2ImgPipeline"
    assert all(hasattr(part, "_hf_hook") for part in (pipe.unet, pipe.vae, pipe.controlnet, pipe.text_encoder))


def test_tiling_is_in_the_metadata(run):
    plain, path, small = (
        image_of(run(*GENERATE, *options))
        for options in (("--size", 128), ("--size", 128, "--vae-tiling"), ("--vae-tiling",))
    )
    assert 0 < abs(pixels(path) - pixels(plain)).mean() < 10
    assert settings_of(path)["vae_tiling"] is True
    assert "vae_tiling" not in settings_of(plain)
    assert same(small, image_of(run(*GENERATE)))


@pytest.mark.parametrize("command", [GENERATE, ("batch", "prompts.txt", "-o", "out")], ids=["generate", "batch"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--offload", "disk"), "offload must be one of model, sequential, group, got 'disk'"),
        (
            ("--offload", "group", "--runtime", "openvino"),
            "offload='group' cannot be combined with the runtime 'openvino'. Remove one of them",
        ),
        (
            ("--offload", "model", "--device", "cpu"),
            "offload='model' needs a GPU, and the device is cpu. Remove it",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_invalid_options_are_refused_in_one_line(run, command, options, message):
    Path("prompts.txt").write_text("a red circle\n")
    # Options are checked before the model is loaded.
    result = run(*command, "--model", "./nowhere", *options)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"deepcache: {message}"


def test_a_batch_resumes_with_another_offload_but_not_with_other_tiling(run):
    Path("prompts.txt").write_text("a red circle\na blue star\n")
    batch = ("batch", "prompts.txt", "--steps", 3, "--size", 128, "--batch", 2)
    assert run(*batch, "-o", "plain").exit_code == 0
    offloaded = run(*batch, "-o", "out", "--offload", "group", "--device", "cpu")
    assert offloaded.exit_code == 0, offloaded.stderr
    expected = images("plain")
    assert images("out") == expected
    # A command without resumes.
    next(Path("out").glob("pictures/*/*.png")).unlink()
    assert run(*batch, "-o", "out").exit_code == 0
    assert images("out") == expected
    assert run(*batch, "-o", "sliced", "--vae-slicing").exit_code == 0
    tiled = run(*batch, "-o", "tiled", "--vae-tiling")
    assert tiled.exit_code == 0
    assert images("tiled").keys() == expected.keys()
    assert images("tiled") != expected
    for folder, options, words in (
        ("out", ("--vae-tiling",), "vae_tiling was None and is True now"),
        ("tiled", (), "vae_tiling was True and is None now"),
    ):
        refused = run(*batch, "-o", folder, *options)
        assert refused.exit_code == 2
        assert words in refused.stderr.splitlines()[-1]


def images(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("pictures/*/*.png")}
