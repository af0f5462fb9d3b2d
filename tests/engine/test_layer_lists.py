"""Blocks whose lists of layers differ in length.

ControlNet-XS runs two paths: its lists have an entry for the sampler, and its mid block returns the hidden states of
both. A layer of AudioLDM 2 has a transformer for each of its conditions.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    AudioLDM2UNet2DConditionModel,
    ControlNetXSAdapter,
    UNet2DConditionModel,
    UNetControlNetXSModel,
)

from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.engine.layouts import skip_branches
from tests.releases import COUNTS_OPERATIONS

BLOCKS = {
    "sample_size": 8,
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 2,
}
BRANCHES = 9


def _normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _controlnet_xs():
    base = UNet2DConditionModel(**BLOCKS, cross_attention_dim=8)
    control = ControlNetXSAdapter.from_unet(base, size_ratio=0.5, conditioning_embedding_out_channels=(8, 8))
    return UNetControlNetXSModel.from_unet(base, control)


def _audioldm2():
    return AudioLDM2UNet2DConditionModel(**BLOCKS, cross_attention_dim=([None, 8, 4],) * 3)


INPUTS = {
    _controlnet_xs: {"encoder_hidden_states": _normal(1, 2, 3, 8), "controlnet_cond": _normal(2, 2, 3, 16, 16)},
    _audioldm2: {"encoder_hidden_states": _normal(1, 2, 3, 8), "encoder_hidden_states_1": _normal(2, 2, 5, 4)},
}


@pytest.fixture(scope="module", params=INPUTS, ids=lambda make: make.__name__.strip("_"))
def make(request):
    return request.param


@pytest.fixture(scope="module")
def unet(make):
    torch.manual_seed(0)
    unet = make().eval().requires_grad_(False)
    for parameter in unet.parameters():
        # Zero convolutions would hide whether the control path runs.
        if not parameter.any():
            parameter.normal_(std=0.1)
    return unet


def _run(unet, branch, inputs, changed):
    """A full step, then a shallow one on the same inputs with some changed."""
    timesteps = torch.full((2,), 500)
    pipe = SimpleNamespace(unet=unet, scheduler=SimpleNamespace(timesteps=timesteps))
    config = DeepCacheConfig(2, cache_branch_id=branch, forecast="none")
    # By default a call with another text belongs to another slot.
    engine = apply_deepcache(pipe, config, slot_key=lambda args, kwargs: "all")
    full = unet(_normal(0, 2, 4, 8, 8), timesteps[0], **inputs).sample
    shallow = unet(_normal(0, 2, 4, 8, 8), timesteps[1], **inputs | changed).sample
    engine.detach()
    assert engine.stats.pattern == "F."
    if COUNTS_OPERATIONS:
        assert engine.stats.mac_share < 1
    return full, shallow


def test_the_branches_are_those_of_three_blocks_of_two_layers(unet):
    assert len(skip_branches(unet)) == BRANCHES


@pytest.mark.parametrize("branch", range(BRANCHES))
def test_shallow_equals_full(unet, make, branch):
    full, shallow = _run(unet, branch, INPUTS[make], {})
    assert torch.equal(full, unet(_normal(0, 2, 4, 8, 8), 500, **INPUTS[make]).sample)
    assert torch.equal(shallow, full)


@pytest.mark.parametrize("branch", range(BRANCHES))
@pytest.mark.parametrize("changed", [{"controlnet_cond": _normal(3, 2, 3, 16, 16)}, {"apply_control": False}])
@pytest.mark.parametrize("make", [_controlnet_xs], indirect=True)
def test_a_shallow_step_follows_the_control(unet, make, branch, changed):
    full, shallow = _run(unet, branch, INPUTS[make], changed)
    assert not torch.equal(shallow, full)


@pytest.mark.parametrize("branch", range(BRANCHES))
@pytest.mark.parametrize("make", [_audioldm2], indirect=True)
def test_a_shallow_step_follows_every_condition_of_its_layers(unet, make, branch):
    # The layers of the first block have no transformer. The layers of the next block take its downsampler's output.
    for name, value in INPUTS[make].items():
        full, shallow = _run(unet, branch, INPUTS[make], {name: value + 1})
        assert torch.equal(shallow, full) == (branch < 3)
