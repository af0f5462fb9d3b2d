"""A U-Net that shares nothing with those of diffusers but the shape.

Blocks, layers and argument names are its own, the number of layers differs from block to block, every layer is a
convolution and a motion module from two lists, and the output is a tuple, a dataclass or a bare tensor.

    stem                                   skip 0
    down block 0: layer                    skip 1
                  shrink                   skip 2
    down block 1: layer, layer, layer      skips 3, 4, 5
                  shrink                   skip 6
    down block 2: layer, layer             skips 7, 8
    mid block
    up block 0: layers that take skips 8, 7, 6, then grow
    up block 1: layers that take skips 5, 4, 3, 2, then grow
    up block 2: layers that take skips 1, 0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["ForeignOutput", "ForeignUNet"]

WIDTHS, LAYERS = (4, 6, 8), (1, 3, 2)


@dataclass
class ForeignOutput:
    """The output of the U-Net where `returns` is "dataclass"."""

    denoised: torch.Tensor


class Convolution(nn.Module):
    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolve = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.time = nn.Linear(4, out_channels)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.convolve(x) + self.time(time)[:, :, None, None])


class Motion(nn.Module):
    """Mixes the frames of a video, which are a batch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=(0, 2, 3)) + text.mean()
        return x + self.mix(mean)[None, :, None, None]


class Shrink(nn.Conv2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 2, stride=2)


class Grow(nn.ConvTranspose2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 2, stride=2)


class Down(nn.Module):
    """A convolution, then its motion module."""

    def __init__(self, channels: int, width: int, layers: int, shrink: bool) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(Convolution(width if i else channels, width) for i in range(layers))
        self.motions = nn.ModuleList(Motion(width) for _ in range(layers))
        self.downsamplers = nn.ModuleList([Shrink(width)]) if shrink else None

    def forward(self, x: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> Any:
        skips = []
        for convolution, motion in zip(self.convolutions, self.motions, strict=True):
            x = motion(convolution(x, time), text)
            skips.append(x)
        if self.downsamplers is not None:
            for shrink in self.downsamplers:
                x = shrink(x)
            skips.append(x)
        return x, skips


class Up(nn.Module):
    """A motion module, then its convolution; the layers are looked up by number."""

    def __init__(self, channels: int, skips: list[int], width: int, grow: bool) -> None:
        super().__init__()
        inputs = [(width if i else channels) + skip for i, skip in enumerate(skips)]
        self.convolutions = nn.ModuleList(Convolution(each, width) for each in inputs)
        self.motions = nn.ModuleList(Motion(each) for each in inputs)
        self.upsamplers = nn.ModuleList([Grow(width)]) if grow else None

    def forward(self, x: torch.Tensor, skips: list[torch.Tensor], time: torch.Tensor, text: torch.Tensor) -> Any:
        for i in range(len(self.convolutions)):
            x = torch.cat([x, skips.pop()], dim=1)
            x = self.convolutions[i](self.motions[i](x, text), time)
        if self.upsamplers is not None:
            x = self.upsamplers[0](x)
        return x


class ForeignUNet(nn.Module):
    """The U-Net.

    Args:
        returns: what a call gives: "tuple", "dataclass" or "tensor".
    """

    def __init__(self, returns: str = "tensor") -> None:
        super().__init__()
        self.returns = returns
        first, second, third = WIDTHS
        self.stem = nn.Conv2d(3, first, 3, padding=1)
        self.down_blocks = nn.ModuleList(
            [
                Down(first, first, LAYERS[0], shrink=True),
                Down(first, second, LAYERS[1], shrink=True),
                Down(second, third, LAYERS[2], shrink=False),
            ]
        )
        self.mid_block = Convolution(third, third)
        self.up_blocks = nn.ModuleList(
            [
                Up(third, [third, third, second], third, grow=True),
                Up(third, [second, second, second, first], second, grow=True),
                Up(second, [first, first], first, grow=False),
            ]
        )
        self.head = nn.Conv2d(first, 3, 3, padding=1)

    def embed(self, noise_level: Any) -> torch.Tensor:
        level = torch.as_tensor(noise_level, dtype=torch.float32, device=self.stem.weight.device).reshape(1, 1)
        return torch.sin(level * torch.arange(1, 5, device=level.device))

    def forward(self, film: torch.Tensor, noise_level: Any, text: torch.Tensor) -> Any:
        time = self.embed(noise_level)
        x = self.stem(film)
        skips = [x]
        for block in self.down_blocks:
            x, more = block(x, time, text)
            skips += more
        x = self.mid_block(x, time)
        for block in self.up_blocks:
            x = block(x, skips, time, text)
        x = self.head(x)
        return {"tuple": (x, "of a third party"), "dataclass": ForeignOutput(x), "tensor": x}[self.returns]
