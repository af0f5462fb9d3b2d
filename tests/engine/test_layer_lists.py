"""ControlNet-XS: a U-Net of two paths, whose lists of layers have an entry for the sampler and whose mid block returns
the hidden states of both paths."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import ControlNetXSAdapter, UNet2DConditionModel, UNetControlNetXSModel

from DeepCache import DeepCacheSDHelper
from DeepCache.engine.branches import skip_branches

BRANCHES = 9


def _normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


INPUTS = {"encoder_hidden_states": _normal(1, 2, 3, 8), "controlnet_cond": _normal(2, 2, 3, 16, 16)}


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    base = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
    )
    control = ControlNetXSAdapter.from_unet(base, size_ratio=0.5, conditioning_embedding_out_channels=(8, 8))
    unet = UNetControlNetXSModel.from_unet(base, control).eval().requires_grad_(False)
    for parameter in unet.parameters():
        # Zero convolutions would hide whether the control path runs.
        if not parameter.any():
            parameter.normal_(std=0.1)
    return unet


def _run(unet, branch, changed):
    """A full step, then a shallow one on the same inputs but for what is changed."""
    timesteps = torch.full((2,), 500)
    with DeepCacheSDHelper(SimpleNamespace(unet=unet, scheduler=SimpleNamespace(timesteps=timesteps))) as helper:
        helper.set_params(cache_interval=2, cache_branch_id=branch)
        full = unet(_normal(0, 2, 4, 8, 8), timesteps[0], **INPUTS).sample
        shallow = unet(_normal(0, 2, 4, 8, 8), timesteps[1], **INPUTS | changed).sample
        assert helper.stats.pattern == "F."
    return full, shallow


def test_the_branches_are_those_of_the_unet_it_controls(unet):
    assert len(skip_branches(unet)) == BRANCHES


@pytest.mark.parametrize("branch", range(BRANCHES))
def test_shallow_equals_full(unet, branch):
    full, shallow = _run(unet, branch, {})
    assert torch.equal(full, unet(_normal(0, 2, 4, 8, 8), 500, **INPUTS).sample)
    assert torch.equal(shallow, full)


@pytest.mark.parametrize("branch", range(BRANCHES))
@pytest.mark.parametrize("changed", [{"controlnet_cond": _normal(3, 2, 3, 16, 16)}, {"apply_control": False}])
def test_a_shallow_step_follows_the_control(unet, branch, changed):
    full, shallow = _run(unet, branch, changed)
    assert not torch.equal(shallow, full)
