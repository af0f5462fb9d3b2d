"""What docs/migrating.md says of programs written for other libraries."""

from __future__ import annotations

import pytest
import torch

from DeepCache import DeepCacheSDHelper
from DeepCache.engine.layouts import skip_branches
from DeepCache.models import random_pipeline
from tests.engine.tiny_pipeline import generate, tiny_pipeline


@pytest.mark.parametrize("name", ["sd15-tiny", "sdxl-tiny"])
def test_the_branch_of_the_layer_and_block_of_onediff(name):
    pipe = random_pipeline(name, device="meta")
    branches = skip_branches(pipe.unet)
    helper = DeepCacheSDHelper(pipe)
    for cache_layer_id, block in enumerate(pipe.unet.down_blocks):
        layers = [f"layer {layer}" for layer in range(len(block.resnets))]
        layers += ["downsampler"] if block.downsamplers else []
        for cache_block_id, layer in enumerate(layers):
            number = 3 * cache_layer_id + cache_block_id + 1
            assert branches[number].name == f"down_blocks.{cache_layer_id} {layer}"
            helper.set_params(cache_branch_id=number)
            params = helper.params
            assert 3 * params["cache_block_id"] + params["cache_layer_id"] == number
    assert number == len(branches) - 1


def test_pruna_may_write_back_what_it_has_compiled():
    pipe = tiny_pipeline()
    plain = generate(pipe)
    # As its algorithm `deepcache` does, and its `torch_compile` after that.
    pipe.function_dict = {"pre_deepcache_call": pipe.__class__.__call__}
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=3, cache_branch_id=0)
    helper.enable()
    pipe.deepcache_unet_helper = helper
    pipe.deepcache_unet_helper.function_dicts = [pipe.deepcache_unet_helper.function_dict]
    cached = generate(pipe)
    assert not torch.equal(cached, plain)

    def fail(*args, **kwargs):
        raise AssertionError("what is written back is not called")

    for name, function in pipe.deepcache_unet_helper.function_dict.items():
        assert callable(function)
        if name != "unet_forward" and name[1] != "block":
            pipe.deepcache_unet_helper.function_dict[name] = fail
    assert torch.equal(generate(pipe), cached)
    # As its `stable_fast` does.
    pipe.deepcache_unet_helper.disable()
    pipe.deepcache_unet_helper.enable()
    assert torch.equal(generate(pipe), cached)
    pipe.deepcache_unet_helper.disable()
    assert torch.equal(generate(pipe), plain)
