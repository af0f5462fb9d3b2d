"""Invalid input is reported in one line on stderr, with exit status 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.helpers import complain


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["PROMPT", "--prompts"]),
        ((" ",), ["empty"]),
        (("x", "--model", "shaps"), ["'shaps'", "did you mean shapes"]),
        (("x", "--model", "./nowhere"), ["'./nowhere'"]),
        (("x", "--model", ""), ["no name"]),
        (("x", "--interval", 0), ["cache_interval", "1 or more", "0"]),
        (("x", "--interval", "two"), ["--interval"]),
        (("x", "--branch", -1), ["cache_branch_id", "-1"]),
        (("x", "--branch", 99), ["cache_branch_id must be between 0 and", "99"]),
        (("x", "--size", "65"), ["65", "multiple of 8", "64 and 72"]),
        (("x", "--size", "64x70"), ["height", "70", "64 and 72"]),
        (("x", "--size", 0), ["multiple of 8"]),
        (("x", "--size", "big"), ["'big'", "512x768"]),
        (("x", "--steps", 0), ["steps", "0"]),
        (("x", "--steps", 100_000), ["steps", "100000"]),
        (("x", "--images", 0), ["images", "0"]),
        (("x", "--guidance", "nan"), ["guidance", "nan"]),
        (("x", "--seed", -1), ["seed", "-1"]),
        (("x", "--scheduler", "eulr"), ["'eulr'", "Did you mean euler or euler-a"]),
        (("x", "--scheduler", "FlowMatchEulerDiscreteScheduler"), ["does not fit", "euler"]),
        (("x", "--dtype", "int8"), ["'int8'", "float16"]),
        (("x", "--device", "gpu"), ["'gpu'", "cuda"]),
        (("x", "--prompts", "nowhere.txt"), ["'nowhere.txt'"]),
        (("x", "--nonsense"), ["--nonsense"]),
        (("x", "--steps", "x"), ["--steps must be a whole number, got 'x'"]),
        (("x", "--steps", "1.5"), ["--steps must be a whole number, got '1.5'"]),
        (("x", "--guidance", "high"), ["--guidance must be a number, got 'high'"]),
        (("x", "--output", ""), ["--output must name a folder, got ''"]),
        (("x", "--output="), ["--output must name a folder, got ''"]),
        (("x", "-o", ""), ["--output must name a folder, got ''"]),
        (("x", "--plan", ""), ["--plan must name a file, got ''"]),
        (("--prompts", ""), ["--prompts must name a file, got ''"]),
        (("--prompts", "nosuch://bucket/prompts.txt"), ["'nosuch://bucket/prompts.txt'"]),
        (("x", "--plan", "s3://bucket/plan.json"), ["'s3://bucket/plan.json': there is no such file"]),
    ],
)
def test_invalid_arguments_of_generate(run, arguments, words):
    complain(run("generate", *arguments), *words)


def test_a_missing_gpu_is_reported(run, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    complain(run("generate", "x", "--device", "cuda"), "'cuda'")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    complain(run("generate", "x", "--device", "cuda:3"), "'cuda:3'", "cuda:0")


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "contains no prompt"), (b"\n# only a comment\n", "contains no prompt"), (b"\xff\xfe", "UTF-8")],
)
def test_a_prompt_file_without_prompts_is_reported(run, content, word):
    Path("prompts.txt").write_bytes(content)
    complain(run("generate", "--prompts", "prompts.txt"), "'prompts.txt'", word)


FILES = {"missing": None, "folder": "folder", "binary": b"\xff\xfe\x00", "other": b'{"a": 1}', "nested": b"[" * 100_000}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "x", "--plan", "file.json"),
        ("batch", "prompts.txt", "-o", "out", "--plan", "file.json"),
        ("ablate", "--variant", "plan=file.json"),
        ("benchmark", "--variant", "plan=file.json"),
        ("report", "file.json"),
        ("generate", "--prompts", "file.json"),
        ("tune", "--cost", "0.5", "--prompts", "file.json"),
    ],
    ids=lambda arguments: f"{arguments[0]} {arguments[-2]}",
)
def test_a_file_of_another_kind_is_named_with_the_reason(run, kind, arguments):
    Path("prompts.txt").write_text("a red circle", encoding="utf-8")
    content = FILES[kind]
    if content == "folder":
        Path("file.json").mkdir()
    elif content is not None:
        Path("file.json").write_bytes(content)
    result = run(*arguments)
    complain(result, "'file.json'")
    for raw in ("Errno", "codec", "Traceback", "RecursionError"):
        assert raw not in result.stderr


@pytest.mark.parametrize("command", ["tune --cost 0.5", "ablate", "generate"])
def test_the_url_of_a_prompt_file_keeps_its_slashes(run, command):
    complain(run(*command.split(), "--prompts", "nosuch://bucket/prompts.txt"), "'nosuch://bucket/prompts.txt'")


def test_a_folder_as_prompt_file_is_reported(run):
    complain(run("generate", "--prompts", "."), "cannot read")


@pytest.mark.parametrize("output", ["file", "file/below"])
def test_an_output_folder_that_cannot_be_created_is_reported(run, output):
    Path("file").touch()
    complain(run("generate", "x", "--output", output), repr(output))


@pytest.mark.parametrize(
    ("index", "word"),
    [
        (None, "no model_index.json"),
        ("{", "is not JSON"),
        ("[]", "does not name a class of diffusers"),
        ({"_class_name": "NoSuchPipeline"}, "NoSuchPipeline"),
        ({"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}, "transformer"),
        ({"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}, "cannot load"),
    ],
)
def test_a_folder_that_is_not_a_model_is_reported(run, index, word):
    Path("model").mkdir()
    if index is not None:
        text = index if isinstance(index, str) else json.dumps(index)
        Path("model/model_index.json").write_text(text, encoding="utf-8")
    complain(run("generate", "x", "--model", "model"), "'model'", word)
    complain(run("info", "model"), "'model'", word)


def test_a_damaged_model_file_is_reported(run):
    Path("model.safetensors").touch()
    complain(run("generate", "x", "--model", "model.safetensors"), "it is damaged, or not a .safetensors file")
    Path("model.txt").touch()
    complain(run("generate", "x", "--model", "model.txt"), "model.txt")


def test_an_unreachable_hub_is_reported(run, monkeypatch):
    from huggingface_hub import HfApi

    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(HfApi, "model_info", offline)
    complain(run("generate", "x", "--model", "nobody/nothing"), "'nobody/nothing'", "no network")


def test_a_model_that_the_hub_does_not_have_is_reported(run, monkeypatch):
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    class NotFound(RepositoryNotFoundError):
        def __init__(self):
            Exception.__init__(self, "404")

    def missing(*_, **__):
        raise NotFound

    monkeypatch.setattr(HfApi, "model_info", missing)
    complain(run("generate", "x", "--model", "nobody/nothing"), "'nobody/nothing'", "on the hub")


def test_an_invalid_hub_id_is_reported(run):
    complain(run("generate", "x", "--model", "no body/nothing"), "'no body/nothing'", "neither")


def test_too_little_memory_is_reported(run, monkeypatch):
    import torch
    from diffusers import StableDiffusionPipeline

    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(StableDiffusionPipeline, "encode_prompt", out_of_memory)
    complain(run("generate", "x"), "memory", "smaller size")


def test_an_unknown_command_is_reported(run):
    complain(run("generat"), "generat")


def test_bugs_keep_their_traceback(run, monkeypatch):
    from diffusers import StableDiffusionPipeline

    def bug(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(StableDiffusionPipeline, "encode_prompt", bug)
    result = run("generate", "x")
    assert isinstance(result.exception, RuntimeError)


def test_an_environment_variable_keeps_the_traceback(run, monkeypatch):
    monkeypatch.setenv("DEEPCACHE_TRACEBACK", "1")
    assert isinstance(run("generate", "x", "-i", 0).exception, ValueError)
