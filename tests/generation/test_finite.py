"""What is no image is not reported as one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from DeepCache import DeepCacheConfig
from DeepCache.generation import GenerationSettings, NotFiniteError, OutputFolder, generate
from DeepCache.generation.finite import check_finite, finite_images
from DeepCache.models import load_pipeline

PROMPT = "a red circle"


@pytest.fixture
def pipe():
    pipe = load_pipeline("shapes", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def break_bias(layer: nn.Module, value=torch.nan) -> None:
    with torch.no_grad():
        layer.bias.fill_(value)


@pytest.mark.parametrize("values", [torch.tensor([0.0, torch.nan]), torch.tensor([torch.inf]), np.array([np.nan])])
def test_values_that_are_no_image(values):
    with pytest.raises(NotFiniteError, match=r"^the model produced NaN or infinite values, .* float32 or bfloat16"):
        check_finite(values, "the model")


def test_images_are_as_without_the_check_and_the_pipeline_is_left_as_it_was(pipe):
    def draw():
        return pipe(PROMPT, num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]

    with finite_images(pipe):
        checked = draw()
    assert checked.tobytes() == draw().tobytes()
    for owner in (pipe, pipe.vae, pipe.image_processor):
        assert not {"decode", "postprocess", "numpy_to_pil"} & vars(owner).keys()


@pytest.mark.parametrize("compare", [False, True])
def test_a_unet_that_gives_nan(pipe, tmp_path, compare):
    break_bias(pipe.unet.conv_out)
    folder = OutputFolder(tmp_path)
    with pytest.raises(NotFiniteError, match=r"cannot generate 'a red circle' \(seed 3, with.*: the model in float32"):
        list(generate(pipe, GenerationSettings((PROMPT,), steps=3, seed=3), folder, compare=compare))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_vae_that_overflows_is_told_from_the_model(pipe, tmp_path, value):
    break_bias(pipe.vae.decoder.conv_out, value)
    with pytest.raises(NotFiniteError, match=r"the VAE in float32 produced .* run the VAE in float32"):
        list(generate(pipe, GenerationSettings((PROMPT,), steps=3), OutputFolder(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_an_overflowing_guidance_scale(pipe, tmp_path):
    with pytest.raises(NotFiniteError, match="lower the guidance scale"):
        list(generate(pipe, GenerationSettings((PROMPT,), steps=3, guidance=1e38), OutputFolder(tmp_path)))


def test_images_before_it_stay(pipe, tmp_path):
    calls = Counter()

    def broken_in_the_second_image(module, args, output):
        calls["unet"] += 1
        return (output[0] * torch.nan,) if calls["unet"] > 2 else output

    pipe.unet.register_forward_hook(broken_in_the_second_image)
    folder = OutputFolder(tmp_path)
    images = generate(pipe, GenerationSettings((PROMPT,), steps=2, images_per_prompt=3), folder)
    next(images)
    with pytest.raises(NotFiniteError, match="seed 1"):
        next(images)
    assert [path.name for path in tmp_path.iterdir()] == ["0001-a-red-circle-seed0.png"]


def test_several_settings_have_a_model_steps_and_schedule_in_common(pipe, tmp_path):
    first = GenerationSettings((PROMPT,), steps=2)
    for other in (
        GenerationSettings((PROMPT,), steps=3),
        GenerationSettings((PROMPT,), steps=2, cache=DeepCacheConfig(2)),
    ):
        with pytest.raises(ValueError, match="must be the same for all images"):
            list(generate(pipe, [first, other], OutputFolder(tmp_path)))
