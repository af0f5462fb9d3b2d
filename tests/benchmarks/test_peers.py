"""The re-implemented rules of other projects, on tiny pipelines and on numbers worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler
from torch import nn

from benchmarks.peers import PEERS, Peer
from benchmarks.peers.adaptive_diffusion import AdaptiveDiffusion
from benchmarks.peers.easycache import EasyCache, LazyCache
from benchmarks.peers.faster_diffusion import FasterDiffusion, every
from benchmarks.peers.first_block import FirstBlockCache
from benchmarks.peers.modelopt import CacheDiffusion
from benchmarks.peers.sada import Sada
from benchmarks.peers.spectrum import Spectrum
from benchmarks.peers.tgate import TGate
from benchmarks.peers.zeus import Zeus
from DeepCache.engine.cost import capture_unet_call, count_costs
from tests.engine.tiny_pipeline import generate, tiny_pipeline

STEPS = 10
GUIDED = {"steps": STEPS, "guidance_scale": 7.5, "batch": 2, "size": 32}
SCHEDULERS = (DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler)
ONE_EACH = (
    "EasyCache 0.3",
    "LazyCache 0.2",
    "SADA",
    "SADA no Lagrange",
    "ZEUS 1/3",
    "Spectrum w=0.5 flex=0.75",
    "Spectrum ComfyUI node",
    "AdaptiveDiffusion 0.02",
    "first-block cache 0.2",
    "T-GATE gate 10 of 25",
    "T-GATE gate 10 of 25, sp 5",
    "Faster Diffusion key steps",
    "ModelOpt cache_diffusion",
)
EXACT = {
    "EasyCache": lambda: EasyCache(0.0),
    "LazyCache": lambda: LazyCache(0.0),
    "SADA": lambda: Sada(None, start=1.0),
    "ZEUS": lambda: Zeus(1),
    "Spectrum": lambda: Spectrum(flex=0, window=1),
    "AdaptiveDiffusion": lambda: AdaptiveDiffusion(0.0),
    "first-block cache": lambda: FirstBlockCache(0.0),
    "T-GATE": lambda: TGate(gate=1.0),
    "Faster Diffusion": lambda: FasterDiffusion(every(1)),
    "ModelOpt": lambda: CacheDiffusion(1),
}
PARTS = {
    "Spectrum w=0.5 flex=0": ("down_blocks.0", "conv_out"),
    "first-block cache 0.2": ("mid_block", "conv_in"),
    "Faster Diffusion I=2": ("down_blocks.0.resnets.0", "up_blocks.0"),
    "ModelOpt cache_diffusion": ("mid_block.resnets.0", "up_blocks.1"),
    "T-GATE gate 10 of 25": ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q", "up_blocks.0"),
}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def attributes(unet):
    """What a U-Net and its modules hold, but for parameters."""
    return {
        name: {key: len(value) if key.endswith("_hooks") else value for key, value in vars(module).items()}
        for name, module in unet.named_modules()
        for key in ["forward"]
        if key in vars(module) or any(vars(module)[hooks] for hooks in vars(module) if hooks.endswith("_hooks"))
    }


@pytest.fixture(scope="module")
def plain(pipe):
    return generate(pipe, **GUIDED)


@pytest.fixture(scope="module")
def full_cost(pipe):
    texts = {"prompt_embeds": torch.zeros(2, 3, 8), "negative_prompt_embeds": torch.zeros(2, 3, 8)}
    call = capture_unet_call(pipe, pipe.unet, **texts, height=32, width=32)
    return count_costs(pipe.unet, *call, branches=()).full


@pytest.mark.parametrize("name", ONE_EACH)
def test_every_rule_starts_fresh_counts_its_cost_and_restores_the_unet(pipe, plain, full_cost, name):
    whole = []
    handle = pipe.unet.mid_block.register_forward_hook(lambda *given: whole.append(1))
    peer = PEERS[name]()
    with peer.on(pipe, STEPS):
        generate(pipe, **GUIDED | {"seed": 5, "batch": 1})
        images = generate(pipe, **GUIDED)
        ran = len(whole)
        again = generate(pipe, **GUIDED)
        ran = len(whole) - ran
    handle.remove()
    # The first time after another image and another batch, then after the same images.
    assert torch.equal(again, images)
    assert peer.runs[1] == peer.runs[2]
    assert not attributes(pipe.unet)
    assert torch.equal(generate(pipe, **GUIDED), plain)
    assert images.isfinite().all()
    run = peer.runs[-1]
    assert len(peer.pattern) == STEPS
    assert peer.pattern[0] == "F"
    assert run.macs[0] == full_cost
    for sign, macs in zip(run.pattern, run.macs, strict=True):
        assert {"F": macs == full_cost, "-": macs == 0, ".": 0 < macs < full_cost}[sign]
    assert peer.mac_share == pytest.approx(sum(run.macs) / (STEPS * full_cost))
    if "." not in run.pattern:
        assert ran == run.pattern.count("F")


def test_every_entry_makes_a_peer():
    for make in PEERS.values():
        assert isinstance(make(), Peer)
        assert callable(make()._make().predict)


@pytest.mark.parametrize("rule", EXACT.values(), ids=EXACT)
def test_a_threshold_of_0_or_an_interval_of_1_changes_nothing(pipe, plain, rule):
    peer = Peer(rule)
    with peer.on(pipe, STEPS):
        images = generate(pipe, **GUIDED)
    assert torch.equal(images, plain)
    assert peer.pattern == "F" * STEPS
    assert peer.mac_share == 1


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", ["LazyCache 0.2", "SADA", "AdaptiveDiffusion 0.02"])
def test_other_schedulers_and_no_guidance(scheduler, name):
    pipe = tiny_pipeline()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    peer = PEERS[name]()
    with peer.on(pipe, STEPS):
        assert generate(pipe, STEPS, size=32, guidance_scale=1.0).isfinite().all()
    assert len(peer.pattern) == STEPS


@pytest.mark.parametrize(("name", "left_out", "runs"), [(name, *modules) for name, modules in PARTS.items()])
def test_a_partial_step_leaves_out_what_it_should(pipe, name, left_out, runs):
    counts = {left_out: 0, runs: 0}

    def counted(path):
        def count(*given):
            counts[path] += 1

        return pipe.unet.get_submodule(path).register_forward_hook(count)

    handles = [counted(left_out), counted(runs)]
    peer = PEERS[name]()
    with peer.on(pipe, STEPS):
        generate(pipe, **GUIDED)
    for handle in handles:
        handle.remove()
    assert "." in peer.pattern
    assert counts[left_out] == peer.pattern.count("F")
    # To count its cost the first block is run once more.
    assert counts[runs] == STEPS + (name == "first-block cache 0.2")


def test_the_cost_of_the_first_block_is_that_of_its_modules(pipe):
    peer = PEERS["first-block cache 0.2"]()
    with peer.on(pipe, STEPS):
        generate(pipe, **GUIDED)
    full, part = peer.runs[-1].macs[0], min(peer.runs[-1].macs)
    assert 0.05 < part / full < 0.5


def test_another_number_of_steps_is_refused(pipe):
    with pytest.raises(ValueError, match="on for 5 steps, the scheduler makes 10"), PEERS["ZEUS 1/2"]().on(pipe, 5):
        generate(pipe, **GUIDED)
    assert not attributes(pipe.unet)


class Scripted(nn.Module):
    """A U-Net that returns given numbers, and notes at which steps it ran."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs, self.ran = outputs, []

    def forward(self, x, number):
        self.ran.append(number)
        return (torch.full_like(x, self.outputs[number]),)


def scripted(rule, timesteps, inputs, outputs):
    """The outputs of a pipeline that calls its U-Net with the given inputs, and the pattern."""
    unet = Scripted(outputs)
    config = SimpleNamespace(num_train_timesteps=1000)
    scheduler = SimpleNamespace(timesteps=torch.tensor(timesteps), config=config)
    pipe = SimpleNamespace(unet=unet, scheduler=scheduler)
    peer = Peer(rule)
    with peer.on(pipe, len(timesteps)):
        results = [
            float(unet(torch.full((1, 1, 8, 8), float(given)), number)[0].mean()) for number, given in enumerate(inputs)
        ]
    assert unet.ran == [number for number, sign in enumerate(peer.pattern) if sign == "F"]
    return results, peer.pattern


def test_easycache_by_hand():
    # Before 15 % (timestep 849.15) full. At 800 the first change of the input, 1, is measured, and the output changes
    # by 2: rate 2. At 700 the input has moved by 1, the output is 20 in size: 2 * 1 / 20 = 0.1 < 0.25, skipped.
    # At 600 it has moved by 1.2 since the last full step: 0.1 + 0.12 = 0.22, skipped; at 500 by 2: 0.42, full, and the
    # rate becomes 3 / 2. At 400: 1.5 * 2 / 23 = 0.13, skipped. After 95 % (49.95) full.
    timesteps = [900, 800, 700, 600, 500, 400, 40]
    inputs = [9, 10, 11, 11.2, 12, 14, 15]
    outputs = [18, 20, 0, 0, 23, 0, 7]
    results, pattern = scripted(lambda: EasyCache(0.25), timesteps, inputs, outputs)
    assert pattern == "FF--F-F"
    # Skipped: the input plus what the last full step added to it, 10 and then 11.
    assert results == pytest.approx([18, 20, 21, 21.2, 23, 25, 7])


def test_adaptive_diffusion_by_hand():
    # Changes of the latents: 4, 3, 2, then 1.9, 1.8, 1.7, 1.6, 1.5. At step 3 |(4 + 2) / 2 - 3| = 0, skipped.
    # At step 4 |(3 + 1.9) / 2 - 2| = 0.45, full. At step 5 |(2 + 1.8) / 2 - 1.9| = 0, and so on: skipped.
    inputs = torch.tensor([0, 4, 3, 2, 1.9, 1.8, 1.7, 1.6, 1.5]).cumsum(0).tolist()
    outputs = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    results, pattern = scripted(lambda: AdaptiveDiffusion(0.1, longest=3), list(range(900, 0, -100)), inputs, outputs)
    assert pattern == "FFF-F---F"
    assert results == [1, 2, 3, 3, 5, 5, 5, 5, 9]


def test_zeus_by_hand():
    results, pattern = scripted(lambda: Zeus(3, 0.2, 1.0), list(range(900, 200, -100)), [0] * 7, [1, 2, 4, 7, 0, 0, 5])
    assert pattern == "FF-F--F"
    # 2 * 2 - 1 = 3 at step 2; 2 * 7 - 2 = 12 at step 4, and the last full step again at step 5.
    assert results == [1, 2, 3, 7, 12, 7, 5]
