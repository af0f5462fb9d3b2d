"""NaN and infinite values are reported, not saved as images."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from DeepCache.generation import GenerationSettings, NotFiniteError, OutputFolder, generate
from DeepCache.generation.finite import check_finite, finite_images
from DeepCache.models import load_pipeline

PROMPT = "a red circle"


@pytest.fixture
def pipe():
    return load_pipeline("shapes", device="cpu", progress_bar=False)


def fill_bias(layer, value=torch.nan):
    with torch.no_grad():
        layer.bias.fill_(value)


def run(pipe, folder, compare=False, **settings):
    return list(generate(pipe, GenerationSettings((PROMPT,), **settings), OutputFolder(folder), compare=compare))


@pytest.mark.parametrize("values", [torch.tensor([0.0, torch.nan]), torch.tensor([torch.inf]), np.array([np.nan])])
def test_non_finite_values_raise(values):
    with pytest.raises(NotFiniteError, match=r"^the model produced NaN or infinite values, .* float32 or bfloat16"):
        check_finite(values, "the model")


def test_the_check_changes_neither_images_nor_pipeline(pipe):
    def image():
        return pipe(PROMPT, num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]

    with finite_images(pipe):
        checked = image()
    assert checked.tobytes() == image().tobytes()
    for owner in (pipe, pipe.vae, pipe.image_processor):
        assert not {"decode", "postprocess", "numpy_to_pil"} & vars(owner).keys()


@pytest.mark.parametrize("compare", [False, True])
def test_a_unet_that_gives_nan_is_reported_with_prompt_and_seed(pipe, tmp_path, compare):
    fill_bias(pipe.unet.conv_out)
    with pytest.raises(NotFiniteError, match=r"cannot generate 'a red circle' \(seed 3, with.*: the model in float32"):
        run(pipe, tmp_path, compare, steps=3, seed=3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_vae_that_overflows_is_distinguished_from_the_model(pipe, tmp_path, value):
    fill_bias(pipe.vae.decoder.conv_out, value)
    with pytest.raises(NotFiniteError, match=r"the VAE in float32 produced .* run the VAE in float32"):
        run(pipe, tmp_path, steps=3)
    assert list(tmp_path.iterdir()) == []


def test_an_overflowing_guidance_scale_is_reported(pipe, tmp_path):
    with pytest.raises(NotFiniteError, match="lower the guidance scale"):
        run(pipe, tmp_path, steps=3, guidance=1e38)


def test_earlier_images_are_kept(pipe, tmp_path):
    calls = Counter()

    def break_the_second_image(module, args, output):
        calls["unet"] += 1
        return (output[0] * torch.nan,) if calls["unet"] > 2 else output

    pipe.unet.register_forward_hook(break_the_second_image)
    with pytest.raises(NotFiniteError, match="seed 1"):
        run(pipe, tmp_path, steps=2, images_per_prompt=3)
    assert [path.name for path in tmp_path.iterdir()] == ["0001-a-red-circle-seed0.png"]
