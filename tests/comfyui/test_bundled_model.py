"""The bundled model generates the same images in ComfyUI's engine and in diffusers: set `COMFYUI_PATH`."""

from __future__ import annotations

import os

import pytest
import torch

from benchmarks.comfyui_engine.nodes import pattern, with_deepcache
from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
from DeepCache.models import load_pipeline

if not os.environ.get("COMFYUI_PATH"):
    pytest.skip("COMFYUI_PATH names no checkout of ComfyUI", allow_module_level=True)

from benchmarks.comfyui_engine import engine
from benchmarks.comfyui_engine.bundled_model import Autoencoder, TextEncoder, model_of

pytestmark = pytest.mark.filterwarnings("default")

PROMPTS = ["a red circle left of a blue square", "a green triangle above a yellow circle"]
STEPS, GUIDANCE = 12, 7.5
CACHED = {
    "shallow": {"interval": 3, "branch": 1, "forecast": "none"},
    "skipped": {"interval": 3, "branch": 0, "forecast": "response"},
}


@pytest.fixture(scope="module")
def pipe():
    loaded = load_pipeline(dtype="float32", device="cpu")
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def patcher(pipe):
    return model_of(pipe)


def _diffusers(pipe):
    latents = torch.randn(len(PROMPTS), 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return pipe(
        PROMPTS, num_inference_steps=STEPS, guidance_scale=GUIDANCE, latents=latents, output_type="pt"
    ).images.movedim(1, -1)


def _comfyui(pipe, patcher):
    """DDIM is Euler's method on noise levels; this scheduler's last step ends at the level of the first timestep."""
    pipe.scheduler.set_timesteps(STEPS)
    kept = pipe.scheduler.alphas_cumprod[torch.cat([pipe.scheduler.timesteps, torch.tensor([0])])]
    sigmas = (1 / kept - 1).sqrt()
    latents = torch.randn(len(PROMPTS), 4, 16, 16, generator=torch.Generator().manual_seed(0))
    # ComfyUI multiplies by the noise level; diffusers' latents have a variance of 1.
    noise = latents * kept[0].rsqrt() / sigmas[0]
    encoder = TextEncoder(pipe)
    positive = [encoder.encode_from_tokens_scheduled(encoder.tokenize(prompt)) for prompt in PROMPTS]
    negative = encoder.encode_from_tokens_scheduled(encoder.tokenize(""))
    images = []
    for number, condition in enumerate(positive):
        samples = engine.sample_at(patcher, noise[number : number + 1], sigmas, GUIDANCE, condition, negative)
        images.append(Autoencoder(pipe.vae).decode(samples * kept[-1].sqrt()))
    return torch.cat(images)


def test_without_caching(pipe, patcher):
    torch.testing.assert_close(_comfyui(pipe, patcher), _diffusers(pipe), rtol=0, atol=1e-4)


@pytest.mark.parametrize("between", CACHED)
def test_with_caching(pipe, patcher, between):
    settings = CACHED[between]
    config = DeepCacheConfig(settings["interval"], settings["branch"], between=between, forecast=settings["forecast"])
    deepcache = apply_deepcache(pipe, config)
    expected = _diffusers(pipe)
    remove_deepcache(pipe)
    cached = with_deepcache(patcher, between=between, **settings)
    torch.testing.assert_close(_comfyui(pipe, cached), expected, rtol=0, atol=1e-4)
    assert pattern(cached) == deepcache.stats.pattern
    assert (expected - _diffusers(pipe)).abs().max() > 0.01
