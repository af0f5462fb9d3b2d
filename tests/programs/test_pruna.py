"""Pruna enables the helper, iterates over its `function_dict`, assigns compiled functions to it, keeps the helper on
the pipeline and compiles the rest."""

from __future__ import annotations

import copy

import pytest
import torch

from DeepCache import DeepCacheSDHelper
from tests.engine.dummy_unet import DummyUNet, Pipeline
from tests.engine.tiny_pipeline import generate
from tests.programs.quick_unet import by_hand, quick_pipeline


def smashed(pipe, interval=3):
    """A pipeline as Pruna returns it."""
    pipe.function_dict = {"pre_deepcache_call": type(pipe).__call__}
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()
    pipe.deepcache_unet_helper = helper
    helper.function_dicts = [helper.function_dict]
    return pipe


@pytest.fixture
def pipe():
    return quick_pipeline()


def test_pipeline_follows_the_schedule(pipe):
    expected = by_hand(pipe)
    smashed(pipe)
    assert torch.equal(generate(pipe), expected)
    assert torch.equal(generate(pipe), expected)


def test_keys_of_function_dict(pipe):
    smashed(pipe)
    functions = pipe.deepcache_unet_helper.function_dict
    assert functions.pop("unet_forward").__self__ is pipe.unet
    assert {key[0] for key in functions} == {"down", "mid", "up"}
    assert all(callable(function) and len(key) == 4 for key, function in functions.items())
    layers = {key: function.__self__ for key, function in functions.items() if key[1] == "resnet"}
    assert layers["up", "resnet", 0, 0] is pipe.unet.up_blocks[-1].resnets[-1]


def test_assigning_to_function_dict_has_no_effect(pipe):
    expected = by_hand(pipe)
    smashed(pipe)
    helper = pipe.deepcache_unet_helper
    for key in helper.function_dict:
        if key != "unet_forward" and key[1] != "block":
            helper.function_dict[key] = torch.compile(helper.function_dict[key], backend="eager")
    assert torch.equal(generate(pipe), expected)
    helper.disable()
    assert torch.equal(generate(pipe), by_hand(pipe, "F"))
    assert helper.function_dict == {}


def test_pipeline_with_its_helper_is_copied(pipe):
    expected = by_hand(pipe)
    twin = copy.deepcopy(smashed(pipe))
    assert torch.equal(generate(twin), expected)
    twin.deepcache_unet_helper.disable()
    assert not torch.equal(generate(twin), expected)
    assert torch.equal(generate(pipe), expected)


def test_state_of_the_reference_package_can_be_reset(pipe):
    """Servers that warm up reset the caches of the reference package."""
    expected = by_hand(pipe)
    helper = smashed(pipe).deepcache_unet_helper
    generate(pipe, steps=3)
    helper.cached_output, helper.start_timestep, helper.cur_timestep = {}, None, 0
    assert torch.equal(generate(pipe), expected)


@pytest.mark.parametrize("compiled", ["the module", "its call"])
@torch.no_grad()
def test_compiled_after_it_is_enabled(compiled):
    torch.compiler.reset()
    pipe, alone = Pipeline(DummyUNet()), Pipeline(DummyUNet())
    for each in (pipe, alone):
        smashed(each)
    if compiled == "the module":
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    else:
        pipe.unet.compile(backend="eager")
    assert [pipe.call(1 + step, step) for step in range(5)] == [alone.call(1 + step, step) for step in range(5)]
    assert pipe.deepcache_unet_helper.stats.pattern == "F..F."
    torch.compiler.reset()
