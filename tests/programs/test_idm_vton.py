"""The U-Nets of IDM-VTON pass a second state between blocks, which shallow steps do not have."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from DeepCache import DeepCacheSDHelper
from tests.programs.by_hand import PlainCopy, tensor_of

SAMPLE = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, hidden_states):
        return torch.tanh(self.convolution(hidden_states))


class ListeningLayer(Layer):
    """Returns the inputs of its attention."""

    def forward(self, hidden_states):
        output = super().forward(hidden_states)
        return output, [hidden_states]


class CountingLayer(Layer):
    """Uses features of the garment and returns their number."""

    def forward(self, hidden_states, garment, taken):
        return super().forward(hidden_states) + garment[taken % len(garment)], taken + 1


class Down(nn.Module):
    def __init__(self):
        super().__init__()
        self.resnets = nn.ModuleList([Layer()])

    def forward(self, hidden_states):
        hidden_states = self.resnets[0](hidden_states)
        return hidden_states, (hidden_states,)


class Up(nn.Module):
    def __init__(self, layer, count):
        super().__init__()
        self.resnets = nn.ModuleList([layer() for _ in range(count)])

    def forward(self, hidden_states, skips):
        features = []
        for resnet in self.resnets:
            skips, skip = skips[:-1], skips[-1]
            output = resnet(hidden_states + skip)
            hidden_states = output[0] if isinstance(output, tuple) else output
            features += output[1] if isinstance(output, tuple) else []
        return hidden_states, features


class GarmentUNet(nn.Module):
    """Encodes the garment: returns the prediction and all features."""

    def __init__(self, mid=ListeningLayer, up=Layer):
        super().__init__()
        torch.manual_seed(0)
        self.down_blocks = nn.ModuleList([Down()])
        self.mid_block = mid()
        self.up_blocks = nn.ModuleList([Up(up, 2)])
        self.eval()

    def forward(self, sample, timestep, encoder_hidden_states=None):
        skips, (hidden_states, more) = (sample,), self.down_blocks[0](sample)
        output = self.mid_block(hidden_states)
        hidden_states, features = output if isinstance(output, tuple) else (output, [])
        hidden_states, more_features = self.up_blocks[0](hidden_states, skips + more)
        return hidden_states, features + more_features


class TryOnUNet(GarmentUNet):
    """Generates: its mid block returns the index of the next feature."""

    def __init__(self):
        super().__init__(mid=CountingLayer)

    def forward(self, sample, timestep, encoder_hidden_states=None, garment=(1.0,)):
        skips, (hidden_states, more) = (sample,), self.down_blocks[0](sample)
        hidden_states, taken = self.mid_block(hidden_states, garment, taken=0)
        return self.up_blocks[0](hidden_states * taken, skips + more)[0]


def everything(unet):
    return {
        module: {name: str(value) for name, value in vars(module).items()} | {"": type(module)}
        for module in unet.modules()
    }


UNETS = {
    "a mid block with features": (lambda: GarmentUNet(), "ListeningLayer returns 2 values"),
    "a layer with features": (lambda: GarmentUNet(Layer, ListeningLayer), "ListeningLayer returns 2 values"),
    "a mid block that counts": (TryOnUNet, "CountingLayer returns 2 values"),
}


@pytest.mark.parametrize("name", UNETS)
@torch.no_grad()
def test_unet_is_refused_by_name_and_restored(name):
    make, message = UNETS[name]
    unet = make()
    before, plain = everything(unet), PlainCopy(unet)
    pipe = SimpleNamespace(unet=unet, scheduler=DDPMScheduler())
    pipe.scheduler.set_timesteps(6)
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=3)
    with pytest.raises(TypeError, match=message):  # noqa: PT012
        helper.enable()
        for t in pipe.scheduler.timesteps:
            unet(SAMPLE, t)
    helper.disable()
    assert everything(unet) == before
    for t in pipe.scheduler.timesteps:
        assert torch.equal(tensor_of(unet(SAMPLE, t)), plain.full(SAMPLE, t))


@torch.no_grad()
def test_every_call_is_refused():
    unet = GarmentUNet()
    DeepCacheSDHelper(SimpleNamespace(unet=unet, scheduler=DDPMScheduler())).enable()
    for _ in range(2):
        with pytest.raises(TypeError, match="Disable DeepCache for it"):
            unet(SAMPLE, torch.tensor(7))
