"""Multiply-accumulates, computed by hand for a toy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache
from DeepCache.engine.cost import capture_unet_call, count_costs, on_meta
from DeepCache.engine.layouts import skip_branches
from tests.engine.dummy_unet import Pipeline
from tests.engine.tiny_pipeline import generate, tiny_pipeline, tiny_unet
from tests.releases import COUNTS

pytestmark = COUNTS


class Down(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)])
        self.downsamplers = nn.ModuleList([nn.Linear(width, out)]) if out else None

    def forward(self, x):
        skips = []
        for layer in (*self.layers, *(self.downsamplers or ())):
            x = layer(x)
            skips.append(x)
        return x, skips


class Up(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x, skips):
        for layer in self.layers:
            x = layer(torch.cat([x, skips.pop()], dim=1))
        return x


class Toy(nn.Module):
    """Multiply-accumulates a row of the batch:

    conv_in           2x3     6   skip 0, 3 wide
    down block 0      3x3     9   skip 1, 3 wide
                      3x3     9   skip 2, 3 wide
      downsampler     3x5    15   skip 3, 5 wide
    down block 1      5x5    25   skip 4, 5 wide
                      5x5    25   skip 5, 5 wide
    mid block         5x7    35
    up block 0   (7+5)x7     84   takes skip 5
                 (7+5)x7     84   takes skip 4
                 (7+5)x4     48   takes skip 3
    up block 1   (4+3)x4     28   takes skip 2
                 (4+3)x4     28   takes skip 1
                 (4+3)x2     14   takes skip 0
    """

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Linear(2, 3)
        self.down_blocks = nn.ModuleList([Down(3, 5), Down(5, None)])
        self.mid_block = nn.Linear(5, 7)
        self.up_blocks = nn.ModuleList(
            [
                Up([nn.Linear(12, 7), nn.Linear(12, 7), nn.Linear(12, 4)]),
                Up([nn.Linear(7, 4), nn.Linear(7, 4), nn.Linear(7, 2)]),
            ]
        )
        self.eval()

    def forward(self, sample, timestep):
        x = self.conv_in(sample)
        skips = [x]
        for block in self.down_blocks:
            x, more = block(x)
            skips += more
        x = self.mid_block(x)
        for block in self.up_blocks:
            x = block(x, skips)
        return x


FULL = 6 + 9 + 9 + 15 + 25 + 25 + 35 + 84 + 84 + 48 + 28 + 28 + 14
SHALLOW = {
    0: 6 + 14,
    1: 6 + 9 + 28 + 14,
    2: 6 + 9 + 9 + 28 + 28 + 14,
    3: 6 + 9 + 9 + 15 + 48 + 28 + 28 + 14,
    4: 6 + 9 + 9 + 15 + 25 + 84 + 48 + 28 + 28 + 14,
    5: 6 + 9 + 9 + 15 + 25 + 25 + 84 + 84 + 48 + 28 + 28 + 14,
}
CHANNELS = {0: 4, 1: 4, 2: 4, 3: 7, 4: 7, 5: 7}


@pytest.mark.parametrize("batch", [1, 3])
def test_every_branch_of_the_toy(batch):
    costs = count_costs(Toy(), (torch.zeros(batch, 2), 500), {})
    assert costs.full == batch * FULL
    assert costs.shallow == {branch: batch * macs for branch, macs in SHALLOW.items()}
    assert costs.channels == CHANNELS
    assert costs.share(2) == SHALLOW[2] / FULL


def test_only_the_branches_asked_for():
    unet = Toy()
    costs = count_costs(unet, (torch.zeros(1, 2), 500), {}, [skip_branches(unet)[4]])
    assert costs.shallow == {4: SHALLOW[4]}


def test_arguments_by_keyword_and_already_on_meta():
    assert count_costs(Toy(), (), {"sample": torch.zeros(1, 2, device="meta"), "timestep": 1}).full == FULL


def test_counting_touches_neither_weights_nor_hooks():
    unet = Toy()
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in unet.state_dict().items()}
    ran = []
    unet.mid_block.register_forward_hook(lambda *_: ran.append("mid block"))
    unet.register_forward_pre_hook(lambda *_: ran.append("U-Net"))
    attributes = {path: dict(module.__dict__) for path, module in unet.named_modules()}
    count_costs(unet, (torch.zeros(1, 2), 500), {})
    assert ran == []
    assert {path: dict(module.__dict__) for path, module in unet.named_modules()} == attributes
    for name, tensor in unet.state_dict().items():
        address, value = before[name]
        assert tensor.data_ptr() == address
        assert torch.equal(tensor, value)
    unet(torch.zeros(1, 2), 500)
    assert ran == ["U-Net", "mid block"]


@pytest.mark.parametrize("steps", [1, 3, 4, 7])
@pytest.mark.parametrize("interval", [1, 2, 3])
@torch.no_grad()
def test_the_share_of_a_trajectory_is_that_of_its_steps(interval, steps):
    pipe = Pipeline(Toy(), timesteps=tuple(range(steps)))
    engine = apply_deepcache(pipe, DeepCacheConfig(interval, cache_branch_id=2))
    for timestep in pipe.scheduler.timesteps:
        pipe.unet(torch.zeros(1, 2), timestep)
    full = -(-steps // interval)
    stats = engine.stats
    assert (stats.full_steps, stats.shallow_steps) == (full, steps - full)
    assert stats.mac_share == (full * FULL + (steps - full) * SHALLOW[2]) / (steps * FULL)


@torch.no_grad()
def test_the_share_counts_calls_of_several_sizes_each_by_its_own():
    """Two slots, the second three times the batch of the first."""
    pipe = Pipeline(Toy(), timesteps=(3, 2, 1))
    engine = apply_deepcache(pipe, DeepCacheConfig(3, cache_branch_id=0), slot_key=lambda args, kwargs: len(args[0]))
    for timestep in pipe.scheduler.timesteps:
        pipe.unet(torch.zeros(1, 2), timestep)
        pipe.unet(torch.zeros(3, 2), timestep)
    assert engine.stats.pattern == "F.."
    assert engine.stats.mac_share == (FULL + 2 * SHALLOW[0]) / (3 * FULL)


def test_the_share_of_a_pipeline_run():
    pipe = tiny_pipeline()
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=3, cache_branch_id=1)
    with helper:
        generate(pipe, steps=7)
        stats = helper.stats
    inputs = {"encoder_hidden_states": torch.zeros(2, 3, 8)}
    share = count_costs(tiny_unet(), (torch.zeros(2, 4, 8, 8), 500), inputs).share(1)
    assert (stats.full_steps, stats.shallow_steps) == (3, 4)
    assert stats.mac_share == pytest.approx((3 + 4 * share) / 7, rel=1e-12)


class TestCapture:
    def test_the_arguments_are_those_of_the_first_call(self):
        pipe = tiny_pipeline()
        args, kwargs = capture_unet_call(pipe, pipe.unet, **_call())
        sample, timestep = args
        assert (sample.shape, sample.device.type) == ((2, 4, 6, 8), "meta")
        assert timestep.shape == ()
        assert kwargs["encoder_hidden_states"].shape == (2, 3, 8)

    def test_the_unet_does_not_run_and_the_hook_is_gone(self):
        pipe = tiny_pipeline()
        ran = []
        pipe.unet.conv_in.register_forward_hook(lambda *_: ran.append("conv_in"))
        hooks = dict(pipe.unet._forward_pre_hooks)
        capture_unet_call(pipe, pipe.unet, **_call())
        assert ran == []
        assert pipe.unet._forward_pre_hooks == hooks

    def test_while_enabled_it_leaves_no_trace_in_the_next_run(self):
        pipe = tiny_pipeline()
        with DeepCacheSDHelper(pipe) as helper:
            clean = generate(pipe)
            capture_unet_call(pipe, pipe.unet, **_call())
            assert torch.equal(generate(pipe), clean)
            assert helper.stats.pattern == "F..F.."

    def test_an_error_of_the_pipeline_is_not_swallowed(self):
        pipe = tiny_pipeline()
        hooks = dict(pipe.unet._forward_pre_hooks)
        with pytest.raises(ValueError, match="divisible by 8"):
            capture_unet_call(pipe, pipe.unet, **_call() | {"height": 50})
        assert pipe.unet._forward_pre_hooks == hooks

    def test_what_was_captured_can_be_counted(self):
        pipe = tiny_pipeline()
        costs = count_costs(pipe.unet, *capture_unet_call(pipe, pipe.unet, **_call()))
        inputs = {"encoder_hidden_states": torch.zeros(2, 3, 8)}
        assert costs == count_costs(pipe.unet, (torch.zeros(2, 4, 6, 8), 0), inputs)


def _call():
    return {
        "prompt_embeds": torch.zeros(1, 3, 8),
        "negative_prompt_embeds": torch.zeros(1, 3, 8),
        "num_inference_steps": 2,
        "height": 48,
        "width": 64,
        "output_type": "latent",
    }


def test_on_meta_keeps_shape_and_structure():
    values = {"a": [torch.zeros(2, 3, dtype=torch.float16), 1], "b": (None, "text", torch.zeros(()))}
    meta = on_meta(values)
    assert meta["a"][0].device.type == meta["b"][2].device.type == "meta"
    assert (meta["a"][0].shape, meta["a"][0].dtype, meta["a"][1]) == ((2, 3), torch.float32, 1)
    assert meta["b"][:2] == (None, "text")
