"""Modules that programs wrap around a U-Net: training engines, metrics, several devices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from DeepCache import DeepCacheSDHelper
from tests.engine.tiny_pipeline import generate
from tests.programs.by_hand import Calls, scheduled, text
from tests.programs.quick_unet import quick_pipeline, quick_unet

STEPS = 6
SCHEDULE = "F..F.."


class Forwarding(nn.Module):
    """Forwards missing attributes to the U-Net."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class WithSettings(nn.Module):
    """Has only the attributes that a pipeline reads."""

    def __init__(self, inner):
        super().__init__()
        self.wrapped, self.config, self.dtype = inner, inner.config, inner.dtype

    def forward(self, sample, timestep, **options):
        return self.wrapped(sample, timestep, **options)


class Engine(nn.Module):
    """Keeps the model as `module` and forwards attributes, as DeepSpeed's engine does."""

    def __init__(self, module):
        super().__init__()
        self.module, self.global_steps, self.optimizer = module, 0, None

    def forward(self, *inputs, **kwargs):
        self.global_steps += 1
        return self.module(*inputs, **kwargs)

    def __getattr__(self, name):
        modules = self.__dict__["_modules"]
        return modules[name] if name in modules else getattr(modules["module"], name)


class Beside(nn.Module):
    """Has another model besides the U-Net, such as an image encoder."""

    def __init__(self, inner):
        super().__init__()
        self.projection = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.unet, self.config, self.dtype = inner, inner.config, inner.dtype

    def forward(self, sample, timestep, **options):
        return self.unet(sample, timestep, **options)


def twice(inner):
    return Engine(Forwarding(inner))


WRAPPERS = [Forwarding, WithSettings, Engine, Beside, twice]


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("enabled", ["before", "after"])
@torch.no_grad()
def test_calls_through_a_wrapper_follow_the_schedule(wrap, enabled):
    pipe = quick_pipeline()
    unet, calls = pipe.unet, Calls(pipe.unet)
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=3)
    if enabled == "before":
        helper.enable()
    pipe.unet = calls.unet = wrap(unet)
    if enabled == "after":
        helper.enable()
    pipe.scheduler.set_timesteps(STEPS)
    for _ in range(2):
        for t in pipe.scheduler.timesteps:
            calls(torch.randn(1, 4, 8, 8), t, encoder_hidden_states=text(0))
        assert calls.take() == SCHEDULE
    # The program may unwrap the U-Net.
    calls.unet = unet
    for t in pipe.scheduler.timesteps:
        calls(torch.randn(1, 4, 8, 8), t, encoder_hidden_states=text(0))
    assert calls.take() == SCHEDULE
    helper.disable()
    assert not unet._forward_hooks
    for t in pipe.scheduler.timesteps:
        calls(torch.randn(1, 4, 8, 8), t, encoder_hidden_states=text(0))
    assert calls.take() == "F" * STEPS


@pytest.mark.parametrize("wrap", [Forwarding, Engine, twice])
@pytest.mark.parametrize("enabled", ["before", "after"])
def test_pipeline_with_a_wrapped_unet(wrap, enabled):
    pipe = quick_pipeline()
    plain, expected = generate(pipe), generate(quick_pipeline(scheduled(pipe.unet, SCHEDULE)))
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=3)
    if enabled == "before":
        helper.enable()
    pipe.unet = wrap(pipe.unet)
    if enabled == "after":
        helper.enable()
    assert torch.equal(generate(pipe), expected)
    assert helper.stats.pattern == SCHEDULE
    helper.disable()
    assert torch.equal(generate(pipe), plain)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_unwrapped_while_enabled(wrap):
    pipe = quick_pipeline()
    unet, expected = pipe.unet, generate(quick_pipeline(scheduled(pipe.unet, SCHEDULE)))
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=3)
    pipe.unet = wrap(unet)
    helper.enable()
    pipe.unet = unet
    assert torch.equal(generate(pipe), expected)
    helper.disable()
    assert not unet._forward_hooks


@pytest.mark.parametrize("wrap", [Forwarding, Engine])
def test_training_through_a_wrapper(wrap):
    pipe, plain = quick_pipeline(), quick_unet()
    pipe.unet = wrap(pipe.unet)
    DeepCacheSDHelper(pipe).enable()
    gradients = []
    for unet in (pipe.unet, plain):
        unet.train()
        for t in (900, 800, 700):
            output = unet(torch.ones(1, 4, 8, 8), torch.tensor([t]), encoder_hidden_states=text(0))
            output.sample.square().mean().backward()
        gradients.append([parameter.grad for parameter in unet.parameters()])
    assert all(map(torch.equal, *gradients))
