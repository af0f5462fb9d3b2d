"""LatentSync sets the timesteps once and denoises the pieces of a video with them. Its lists of motion modules contain
None."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from DeepCache import DeepCacheSDHelper
from tests.programs.by_hand import Calls, scheduled

STEPS, PIECES = 8, 4
SCHEDULE = "F..F..F."


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, hidden_states, audio):
        return torch.tanh(self.convolution(hidden_states) + audio)


class Block(nn.Module):
    """Two layers, each with a motion module or None."""

    def __init__(self, with_motion):
        super().__init__()
        self.resnets = nn.ModuleList([Layer(), Layer()])
        self.motion_modules = nn.ModuleList([Layer() if with_motion else None for _ in range(2)])

    def layers(self):
        return zip(self.resnets, self.motion_modules, strict=True)


class Down(Block):
    def forward(self, hidden_states, audio):
        skips = ()
        for resnet, motion in self.layers():
            hidden_states = resnet(hidden_states, audio)
            hidden_states = hidden_states if motion is None else motion(hidden_states, audio)
            skips += (hidden_states,)
        return hidden_states, skips


class Up(Block):
    def __init__(self, with_motion, layers):
        super().__init__(with_motion)
        if layers == 3:
            self.resnets.append(Layer())
            self.motion_modules.append(Layer() if with_motion else None)

    def forward(self, hidden_states, skips, audio):
        for resnet, motion in self.layers():
            skips, skip = skips[:-1], skips[-1]
            hidden_states = resnet(hidden_states + skip, audio)
            hidden_states = hidden_states if motion is None else motion(hidden_states, audio)
        return hidden_states


class LipUNet(nn.Module):
    """Lists of motion modules with modules where `with_motion` is true, with None elsewhere."""

    def __init__(self, with_motion):
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = nn.Conv2d(12, 4, 1)
        self.down_blocks = nn.ModuleList([Down(False), Down(with_motion)])
        self.mid_block = Layer()
        self.up_blocks = nn.ModuleList([Up(with_motion, 2), Up(False, 3)])
        self.eval()

    def forward(self, sample, timestep, encoder_hidden_states=None):
        audio = 0.0 if encoder_hidden_states is None else encoder_hidden_states.mean((1, 2))[:, None, None, None]
        hidden_states = self.conv_in(sample) + timestep / 1000
        skips = (hidden_states,)
        for block in self.down_blocks:
            hidden_states, more = block(hidden_states, audio)
            skips += more
        hidden_states = self.mid_block(hidden_states, audio)
        for block in self.up_blocks:
            count = len(block.resnets)
            skips, taken = skips[:-count], skips[-count:]
            hidden_states = block(hidden_states, taken, audio)
        return (hidden_states,)


class Pipeline:
    def __init__(self, unet):
        self.unet, self.scheduler = unet, DDIMScheduler()

    @torch.no_grad()
    def __call__(self, pieces, calls=None, with_audio=True):
        """The latents of each piece."""
        self.scheduler.set_timesteps(STEPS)
        timesteps, generator = self.scheduler.timesteps, torch.Generator().manual_seed(1)
        audio, results = torch.randn(pieces, 1, 3, 8, generator=generator), []
        for piece in range(pieces):
            embeds = torch.cat([torch.zeros_like(audio[piece]), audio[piece]]) if with_audio else None
            latents, still = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(2, 8, 8, 8, generator=generator)
            for t in timesteps:
                unet_input = torch.cat([torch.cat([latents] * 2), still], dim=1)
                if calls is None:
                    noise = self.unet(unet_input, t, encoder_hidden_states=embeds)[0]
                else:
                    noise = calls(unet_input, t, encoder_hidden_states=embeds, purpose=piece)
                without, with_ = noise.chunk(2)
                latents = self.scheduler.step(without + 1.5 * (with_ - without), t, latents).prev_sample
            results.append(latents)
        return torch.stack(results)


@pytest.fixture(params=[True, False], ids=["motion modules in some blocks", "None everywhere"])
def pipe(request):
    return Pipeline(LipUNet(request.param))


@pytest.mark.parametrize("with_audio", [True, False])
def test_each_piece_is_a_run(pipe, with_audio):
    calls = Calls(pipe.unet)
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=3, cache_branch_id=0)
    helper.enable()
    pipe(PIECES, calls, with_audio)
    assert calls.take() == SCHEDULE * PIECES
    assert helper.stats.pattern == SCHEDULE


def test_every_branch_and_back(pipe):
    by_hand = Pipeline(scheduled(pipe.unet, SCHEDULE))(2)
    plain = pipe(2)
    helper = DeepCacheSDHelper(pipe=pipe)
    for branch in range(5):
        helper.set_params(cache_interval=3, cache_branch_id=branch)
        helper.enable()
        found = pipe(2)
        assert torch.equal(found, by_hand) if branch == 0 else not torch.equal(found, plain)
        helper.set_params(cache_interval=1, cache_branch_id=branch)
        assert torch.equal(pipe(2), plain)
    helper.disable()
    assert torch.equal(pipe(2), plain)


def test_training_between_runs(pipe):
    calls = Calls(pipe.unet)
    DeepCacheSDHelper(pipe).enable()
    for _ in range(2):
        pipe.unet.train()
        sample = torch.ones(2, 12, 8, 8)
        pipe.unet(sample, torch.tensor(7))[0].sum().backward()
        expected = torch.autograd.grad(calls.plain.unet(sample, 7)[0].sum(), list(calls.plain.unet.parameters()))
        for parameter, gradient in zip(pipe.unet.parameters(), expected, strict=True):
            assert torch.equal(parameter.grad, gradient)
        pipe.unet.zero_grad()
        pipe.unet.eval()
        pipe(1, calls)
        assert calls.take() == SCHEDULE
