"""What lets the blocks of the pages run at once on a machine without a network and a GPU. This is all of it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from DeepCache.bench import profiled_steps
from DeepCache.models import ARCHITECTURES, random_pipeline
from tests.bench.small_models import remember_costs

STEPS = 4
"""How many steps a run has where it does not matter how many, and where a page says 50."""

SUBSTITUTIONS = (
    # Models of the hub, and those of full size: tiny ones of the same kind with random weights.
    (r"stable-diffusion-v1-5/stable-diffusion-v1-5", "sd15-tiny"),
    (r"stabilityai/stable-diffusion-xl-base-1\.0", "sdxl-tiny"),
    (r"--model (sd15|sd21|sdxl)(?![-\w])", r"--model \1-tiny"),
    (r"/models/sd15|checkpoint\.safetensors", "sd15-tiny"),
    # Devices.
    (r'"cuda"', '"cpu"'),
    # What lies in a bucket.
    (r"s3://bucket/prompts\.parquet", "prompts.csv"),
    (r"s3://bucket/images", "images-of-the-cluster"),
    # Steps, as many as the commands below have.
    (r"num_inference_steps=50\b", f"num_inference_steps={STEPS}"),
)
"""Patterns in the blocks, and what they become."""

LESS = {
    "ablate": (
        *("--steps", f"{STEPS}", "--forecasts", "none", "--count", "1", "--samples", "1"),
        *("--schedulers", "ddim", "--guidance", "7.5", "--intervals", "3", "--branches", "0"),
    ),
    "batch": ("--steps", f"{STEPS}", "--engine", "local"),
    "benchmark": (
        *("--steps", "3", "--rounds", "1", "--warm-up", "0", "--sizes", "64", "--scopes", "unet"),
        "--no-fewer-steps",
    ),
    "export": ("--size", "64", "--steps", f"{STEPS}", "--overwrite"),
    "generate": ("--steps", f"{STEPS}"),
    "tune": ("--steps", f"{STEPS}", "--cost", "0.7", "--evaluations", "0", "--tune-on", "1", "--check-on", "1"),
}
"""What is added to the commands, so that they have less to do. The last of two options of one name counts."""

WITHOUT_RAY = {"--ray-address", "--workers", "--most-workers", "--gpus-per-worker"}
"""Options that go with `--engine ray`, and are left out with it."""

NOT_RUN = {"app": "serves its page until it is stopped"}
"""Commands of which only the options are checked."""

FILES = {"prompts.csv": "prompt\na red circle\na blue square\n"}
"""What the reader of a page has in the folder."""


def substituted(text: str) -> str:
    for pattern, instead in SUBSTITUTIONS:
        text = re.sub(pattern, instead, text)
    return text


def lessened(arguments: list[str]) -> list[str]:
    """The arguments of `deepcache` with less to do."""
    before = ["", *arguments]
    kept = [word for word, last in zip(arguments, before, strict=False) if not {word, last} & WITHOUT_RAY]
    return [*kept, *LESS.get(arguments[0], ())]


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has diffusers build what it would download and take few steps, and `torch.compile` leave things as they are."""
    load = DiffusionPipeline.from_pretrained.__func__

    def from_pretrained(kind: Any, name: Any, **options: Any) -> Any:
        if name not in ARCHITECTURES:
            assert Path(name).is_dir(), f"{name} is to be downloaded: say in {Path(__file__).name} what to take instead"
            return load(kind, name, **options)
        pipe = random_pipeline(name, dtype=torch.float32, device="cpu")
        return pipe if isinstance(pipe, kind) else kind.from_pipe(pipe)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(from_pretrained))
    remember_costs(monkeypatch)
    monkeypatch.setattr(profiled_steps, "_SAMPLES", 1)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    for kind in (StableDiffusionPipeline, StableDiffusionXLPipeline):
        call = inspect.unwrap(kind.__call__)
        monkeypatch.setattr(call, "__defaults__", tuple(STEPS if value == 50 else value for value in call.__defaults__))
