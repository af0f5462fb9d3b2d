"""`deepcache generate --from IMAGE`."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from DeepCache.generation import read_settings
from DeepCache.generation.a1111 import parse_parameters
from DeepCache.models import load_pipeline
from DeepCache.schedule import Step
from tests.bench.small_models import plan_for
from tests.cli.helpers import complain, image_of, same
from tests.models.small_adapters import save_embedding, save_lora

FIRST = ("a red circle", "--steps", 6, "--seed", 7, "--output", "first.png")
PARAMETERS = (
    "a red <lora:ink:0.8> circle,\n(large:1.2)\nNegative prompt: blue\nSteps: 5, Sampler: DPM++ 2M Karras, "
    'CFG scale: 3.5, Seed: 12, Size: 64x64, Model hash: abc, Model: ink, Lora hashes: "ink: 1, wet: 2", Clip skip: 2, '
    "Version: v1.10.1"
)


def again(run, *arguments):
    result = run("generate", "--from", *arguments, "--json")
    return image_of(result), result.stderr


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--scheduler", "euler-a", "--guidance", 4, "--negative-prompt", "blue", "--guidance-reuse", "--size", "72x64"),
        ("--interval", 2, "--branch", 3, "--forecast", "quadratic", "--skip-mode", "non-uniform"),
        ("--skip-mode", "adaptive", "--threshold", 0.3, "--between", "alternating"),
        ("--preset", "fast"),
    ],
    ids=lambda options: " ".join(map(str, options)) or "defaults",
)
def test_an_image_is_regenerated(run, options):
    assert run("generate", *FIRST, *options).exit_code == 0
    path, stderr = again(run, "first.png", "--output", "second.png")
    assert same(path, "first.png")
    assert read_settings(path) == read_settings("first.png")
    assert "Compared with first.png: identical pixels" in stderr
    assert "Differences" not in stderr


def test_an_image_with_a_plan_is_regenerated_with_the_plan(run):
    pipe = load_pipeline("shapes", device="cpu")
    plan = plan_for(pipe, (Step(True), Step(False, branch=1), Step(True), Step(False)))
    plan.to_file("plan.json")
    assert run("generate", *FIRST, "--steps", 4, "--plan", "plan.json").exit_code == 0
    for source in (["--from", "first.png"], [*FIRST, "--steps", 4, "--plan", "first.png"]):
        assert same(image_of(run("generate", *source, "--json")), "first.png")
    assert run("generate", *FIRST, "--output", "uniform.png").exit_code == 0
    complain(run("generate", *FIRST, "--plan", "uniform.png"), "deepcache: 'uniform.png' was generated without a plan")


def test_the_image_without_deepcache_is_regenerated_without_it(run):
    assert run("generate", *FIRST, "--compare").exit_code == 0
    path, _ = again(run, "first-original.png", "--output", "second.png")
    assert same(path, "first-original.png")


def test_options_override_the_metadata(run):
    assert run("generate", *FIRST, "--preset", "fast").exit_code == 0
    path, stderr = again(run, "first.png", "a blue star", "--interval", 2)
    found = read_settings(path)
    assert (found["prompt"], found["seed"]) == ("a blue star", 7)
    assert (found["settings"]["cache_interval"], found["settings"]["steps"]) == (2, 6)
    assert "Compared with first.png: PSNR" in stderr


def test_the_settings_file_is_ignored(run, tmp_path):
    assert run("generate", *FIRST).exit_code == 0
    (tmp_path / "deepcache.toml").write_text("guidance-reuse = true\n", encoding="utf-8")
    path, _ = again(run, "first.png")
    assert same(path, "first.png")


def test_differences_are_printed(run, tmp_path):
    assert run("generate", *FIRST).exit_code == 0
    with Image.open("first.png") as image:
        notes = dict(image.info)
        settings = json.loads(notes["settings"])
        settings["versions"]["torch"], settings["device"], settings["weights"] = "2.0.0", "cuda:0", "abc"
        info = PngInfo()
        for name, value in (notes | {"settings": json.dumps(settings)}).items():
            info.add_text(name, value)
        image.save("other.png", pnginfo=info)
    _, stderr = again(run, "other.png")
    (line,) = (line for line in stderr.splitlines() if line.startswith("Differences from other.png: "))
    assert "(then 2.0.0), device cpu (then cuda:0), weights" in line
    assert line.endswith("(then abc)")


def test_an_image_of_a_batch_is_regenerated_with_its_model(run, tmp_path):
    (tmp_path / "prompts.csv").write_text("prompt\na red circle\n", encoding="utf-8")
    assert run("batch", "prompts.csv", "--output", "batch", "--steps", 4, "--threads", 1).exit_code == 0
    (image,) = (tmp_path / "batch").rglob("*.png")
    complain(run("generate", "--from", image), "does not contain --model. Add it to the command")
    path, stderr = again(run, image, "--model", "shapes")
    assert same(path, image)
    assert "Differences" not in stderr


def test_an_image_of_a_batch_is_regenerated_with_its_adapters(run, tmp_path):
    (tmp_path / "prompts.csv").write_text("prompt\na mine circle\n", encoding="utf-8")
    adapters = ("--lora", f"{save_lora(tmp_path / 'lora')}:0.5", "--embedding", "mine.safetensors")
    save_embedding(tmp_path / "mine.safetensors")
    assert run("batch", "prompts.csv", "--output", "batch", "--steps", 4, "--threads", 1, *adapters).exit_code == 0
    (image,) = (tmp_path / "batch").rglob("*.png")
    result = run("generate", "--from", image, "--model", "shapes")
    complain(result, "does not contain --lora and --embedding. Add them to the command")
    path, stderr = again(run, image, "--model", "shapes", *adapters)
    assert "Differences" not in stderr
    assert same(path, image)


def test_parameters_of_other_programs_are_read(run, tmp_path):
    info = PngInfo()
    info.add_text("parameters", PARAMETERS)
    Image.new("RGB", (64, 64)).save("theirs.png", pnginfo=info)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + PARAMETERS.encode("utf-16-be")
    Image.new("RGB", (64, 64)).save("theirs.jpg", exif=exif)
    for name in ("theirs.png", "theirs.jpg"):
        complain(run("generate", "--from", name), "does not contain --model. Add it")
        path, stderr = again(run, name, "--model", "shapes")
        found = read_settings(path)
        assert found["prompt"] == "a red  circle,\n(large:1.2)"
        assert (found["negative_prompt"], found["seed"]) == ("blue", 12)
        settings = found["settings"]
        assert settings["scheduler"] == "DPMSolverMultistepScheduler"
        assert (settings["steps"], settings["guidance"]) == (5, 3.5)
        # They have no caching.
        assert settings["cache_interval"] == 1
        assert (
            f"Ignored settings of {name}: Schedule type: Karras; Model: ink; Lora hashes: ink: 1, wet: 2; "
            "Clip skip: 2; <lora:ink:0.8>; (large:1.2)"
        ) in stderr


@pytest.mark.parametrize(
    ("text", "scheduler", "unread"),
    [
        ("Sampler: Euler a", "euler-a", []),
        ("Sampler: DPM++ 2M, Schedule type: Karras", "dpm++", ["Schedule type: Karras"]),
        ("Sampler: DPM adaptive", None, ["Sampler: DPM adaptive"]),
        ("Denoising strength: 0.5, Hires upscale: 2", None, ["Denoising strength: 0.5", "Hires upscale: 2"]),
    ],
)
def test_unsupported_parameters_are_listed(text, scheduler, unread):
    options, found = parse_parameters(f"x\nSteps: 3, {text}")
    assert (options.get("scheduler"), found) == (scheduler, unread)


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({}, "has neither settings of DeepCache nor parameters"),
        ({"workflow": "{}"}, "is a workflow of ComfyUI. Open it in ComfyUI"),
        ({"parameters": "a red circle"}, "its parameters lack the last line"),
    ],
)
def test_an_image_without_settings_is_refused(run, notes, message):
    info = PngInfo()
    for name, value in notes.items():
        info.add_text(name, value)
    Image.new("RGB", (8, 8)).save("image.png", pnginfo=info)
    complain(run("generate", "--from", "image.png"), message)


def test_a_file_that_is_not_an_image_is_refused(run, tmp_path):
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    for name in ("text.png", "missing.png"):
        complain(run("generate", "--from", name), name)
