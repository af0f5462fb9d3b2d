"""The bundled model generates what its prompt says."""

import json
from pathlib import Path

import pytest
import torch

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.engine.layouts import skip_branches
from DeepCache.metrics import image_tensor, psnr
from DeepCache.models import MODELS, load_pipeline

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("shapes", dtype="float32", device="cpu", progress_bar=False)


def images(pipe, prompt="a red circle left of a blue square"):
    generator = torch.Generator().manual_seed(0)
    guidance = MODELS["shapes"].guidance
    return pipe(prompt, num_inference_steps=12, guidance_scale=guidance, generator=generator).images


def test_it_is_small_and_contains_no_pickle():
    files = [path for path in MODELS["shapes"].folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16_000_000
    assert {path.suffix for path in files} == {".json", ".txt", ".md", ".safetensors"}


def test_it_has_the_topology_of_stable_diffusion(pipe):
    assert len(skip_branches(pipe.unet)) == 12
    assert [bool(getattr(block, "has_cross_attention", False)) for block in pipe.unet.down_blocks] == [True] * 3 + [
        False
    ]
    assert pipe.scheduler.config.beta_schedule == "scaled_linear"
    assert pipe.scheduler.config.prediction_type == "epsilon"


def test_shapes_have_the_colour_and_place_of_the_prompt(pipe):
    (image,) = image_tensor(images(pipe))
    left, right = image[:, 24:40, 10:28].mean((1, 2)), image[:, 24:40, 36:54].mean((1, 2))
    assert left[0] > left[2] + 0.1  # red
    assert right[2] > right[0] + 0.1  # blue


def test_images_depend_on_the_prompt(pipe):
    assert psnr(images(pipe), images(pipe, "a green star")).item() < 20


def test_deepcache_gives_almost_the_same_image(pipe):
    original = images(pipe)
    engine = apply_deepcache(pipe, DeepCacheConfig(cache_interval=2))
    near = psnr(images(pipe), original).item()
    engine.detach()
    assert engine.stats.pattern == "F.F.F.F.F.F."
    assert 25 < near < float("inf")
    assert images(pipe)[0].tobytes() == original[0].tobytes()


def test_the_measured_quality_meets_the_targets():
    results = json.loads((ROOT / "training" / "results.json").read_text())
    assert results["held_out"]["captions"] >= 128
    assert results["held_out"]["objects_right"] >= 0.9
    assert results["vae_psnr_db"] >= 28
    assert results["recogniser_objects_right"] >= 0.99
    assert results["recommended_guidance"] == MODELS["shapes"].guidance
