"""Small denoisers, and the module of each that makes the deep feature at a skip branch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.engine.tiny_pipeline import tiny_unet

WIDTH = 6


class Layer(nn.Module):
    """A linear layer with the conditioning and, in the up path, a skip connection as inputs."""

    def __init__(self, taken: int) -> None:
        super().__init__()
        self.linear = nn.Linear(taken, WIDTH)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(x) + embedding)


class Down(nn.Module):
    def __init__(self, last: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(WIDTH)])
        self.downsamplers = None if last else nn.ModuleList([Layer(WIDTH)])

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        skips = []
        for layer in (*self.layers, *(self.downsamplers or ())):
            x = layer(x, embedding)
            skips.append(x)
        return x, skips


class Up(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(2 * WIDTH), Layer(2 * WIDTH)])

    def forward(self, x: torch.Tensor, skips: list[torch.Tensor], embedding: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(torch.cat([x, skips.pop()], dim=-1), embedding)
        return x


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Linear(4, WIDTH)

    def forward(self, timestep: Any, text: torch.Tensor) -> torch.Tensor:
        return self.text(text.mean(1)) + torch.as_tensor(timestep).float().reshape(-1, 1) / 1000


class BlocksUNet(nn.Module):
    """The layout of diffusers' U-Nets."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv_in, self.conv_out = Embedding(), nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.down_blocks = nn.ModuleList([Down(last=False), Down(last=True)])
        self.mid_block = Layer(WIDTH)
        self.up_blocks = nn.ModuleList([Up(), Up()])

    def forward(self, sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        embedding = self.embed(timestep, encoder_hidden_states)
        x = self.conv_in(sample)
        skips = [x]
        for block in self.down_blocks:
            x, more = block(x, embedding)
            skips += more
        x = self.mid_block(x, embedding)
        for block in self.up_blocks:
            x = block(x, skips, embedding)
        return self.conv_out(x)


class PairedUNet(nn.Module):
    """The layout of latent diffusion's U-Nets."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = Embedding(), nn.Linear(WIDTH, 4)
        self.input_blocks = nn.ModuleList([Layer(4), Layer(WIDTH), Layer(WIDTH)])
        self.middle_block = Layer(WIDTH)
        self.output_blocks = nn.ModuleList(Layer(2 * WIDTH) for _ in range(3))

    def forward(self, x: torch.Tensor, timesteps: Any, context: torch.Tensor) -> torch.Tensor:
        embedding, skips = self.embed(timesteps, context), []
        for block in self.input_blocks:
            x = block(x, embedding)
            skips.append(x)
        x = self.middle_block(x, embedding)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=-1), embedding)
        return self.out(x)


PRODUCERS: dict[str, dict[int, str]] = {
    "blocks": {0: "up_blocks.1.layers.0", 1: "up_blocks.0", 2: "up_blocks.0.layers.0", 3: "mid_block"},
    "paired lists": {0: "output_blocks.1", 1: "output_blocks.0", 2: "middle_block"},
    "diffusers": {0: "up_blocks.1.attentions.1", 3: "up_blocks.0.resnets.1"},
}
"""The module whose output is the deep feature, by the kind of the denoiser and the number of the skip branch."""

DENOISERS = tuple(PRODUCERS)


def make_denoiser(kind: str, seed: int) -> nn.Module:
    """A denoiser with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    if kind == "diffusers":
        return tiny_unet(seed)
    return (BlocksUNet() if kind == "blocks" else PairedUNet()).eval()
