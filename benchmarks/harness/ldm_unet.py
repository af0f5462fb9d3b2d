"""A U-Net with the published layout of CompVis' latent diffusion.

`forward` runs it like CompVis' ControlNet (a list of residuals, taken from the end), `LayerByLayerUNet` like ComfyUI (a
block's layers are called one by one, and not the block).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

WIDTH = 8
TEXT = 6


class ResBlock(nn.Module):
    def __init__(self, taken: int, made: int) -> None:
        super().__init__()
        self.into = nn.Conv2d(taken, made, 3, padding=1)
        self.time = nn.Linear(WIDTH, made)
        self.out = nn.Conv2d(made, made, 3, padding=1)
        self.skip = nn.Conv2d(taken, made, 1)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        h = self.into(torch.nn.functional.silu(x)) + self.time(emb)[..., None, None]
        return self.skip(x) + self.out(torch.nn.functional.silu(h))


class SpatialTransformer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, kdim=TEXT, vdim=TEXT, batch_first=True)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        attended, _ = self.attention(tokens, context, context, need_weights=False)
        return x + attended.transpose(1, 2).reshape(x.shape)


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(nn.functional.interpolate(x, scale_factor=2.0))


class TimestepEmbedSequential(nn.Sequential):
    def forward(self, x: torch.Tensor, emb: torch.Tensor, context: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        for layer in self:
            x = call_layer(layer, x, emb, context)
        return x


def call_layer(layer: Any, x: torch.Tensor, emb: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, ResBlock):
        return layer(x, emb)
    return layer(x, context) if isinstance(layer, SpatialTransformer) else layer(x)


class LdmUNet(nn.Module):
    """Three levels of two ResNets, with cross-attention below the first, as `openaimodel.UNetModel` arranges them."""

    def __init__(self, channels: int = 4, levels: tuple[int, ...] = (1, 2, 2), resnets: int = 2) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(nn.Conv2d(channels, WIDTH, 3, padding=1))])
        made, width = [WIDTH], WIDTH
        for level, factor in enumerate(levels):
            for _ in range(resnets):
                layers: list[nn.Module] = [ResBlock(width, factor * WIDTH)]
                width = factor * WIDTH
                if level:
                    layers.append(SpatialTransformer(width))
                self.input_blocks.append(TimestepEmbedSequential(*layers))
                made.append(width)
            if level < len(levels) - 1:
                self.input_blocks.append(TimestepEmbedSequential(nn.Conv2d(width, width, 3, stride=2, padding=1)))
                made.append(width)
        self.middle_block = TimestepEmbedSequential(
            ResBlock(width, width), SpatialTransformer(width), ResBlock(width, width)
        )
        self.output_blocks = nn.ModuleList()
        for level, factor in reversed(list(enumerate(levels))):
            for number in range(resnets + 1):
                layers = [ResBlock(width + made.pop(), factor * WIDTH)]
                width = factor * WIDTH
                if level:
                    layers.append(SpatialTransformer(width))
                if level and number == resnets:
                    layers.append(Upsample(width))
                self.output_blocks.append(TimestepEmbedSequential(*layers))
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(
        self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, control: Any = None
    ) -> torch.Tensor:
        emb, h, hs = self._embedded(x, timesteps), x, []
        for block in self.input_blocks:
            h = block(h, emb, context)
            hs.append(h)
        h = self.middle_block(h, emb, context)
        if control is not None:
            h = h + control.pop()
        for block in self.output_blocks:
            skip = hs.pop() if control is None else hs.pop() + control.pop()
            h = block(torch.cat([h, skip], dim=1), emb, context)
        return self.out(h)

    def _embedded(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        timesteps = torch.as_tensor(timesteps, dtype=torch.float32).reshape(-1).expand(len(x))
        return self.time_embed(torch.cos(timesteps[:, None] * torch.arange(1, WIDTH + 1, device=x.device) / 100))


class LayerByLayerUNet(LdmUNet):
    """Runs like ComfyUI, with ControlNet's residuals in its format."""

    def forward(
        self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, control: Any = None
    ) -> torch.Tensor:
        emb, h, hs = self._embedded(x, timesteps), x, []
        for block in self.input_blocks:
            h = _add(_layers(block, h, emb, context), control, "input")
            hs.append(h)
        h = _add(_layers(self.middle_block, h, emb, context), control, "middle")
        for block in self.output_blocks:
            skip = _add(hs.pop(), control, "output")
            h = _layers(block, torch.cat([h, skip], dim=1), emb, context)
        return self.out(h)


def _layers(block: Any, h: torch.Tensor, emb: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    # Some models have no middle block.
    for layer in block or ():
        h = call_layer(layer, h, emb, context)
    return h


def _add(h: torch.Tensor, control: Any, name: str) -> torch.Tensor:
    residuals = control.get(name) if control is not None else None
    residual = residuals.pop() if residuals else None
    return h if residual is None else h + residual
