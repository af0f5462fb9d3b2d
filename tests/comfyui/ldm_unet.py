"""A small U-Net in the layout of latent diffusion, with patches, ControlNets and block numbers as in ComfyUI."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["LdmUNet"]

CHANNELS, TOKENS, TEXT = 8, 3, 6


class ResBlock(nn.Module):
    """A convolution with a time embedding."""

    def __init__(self, taken: int, made: int) -> None:
        super().__init__()
        self.conv, self.time = nn.Conv2d(taken, made, 3, padding=1), nn.Linear(CHANNELS, made)
        self.skip = nn.Conv2d(taken, made, 1) if taken != made else nn.Identity()

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        return self.skip(x) + torch.tanh(self.conv(x) + self.time(emb)[:, :, None, None])


class SpatialTransformer(nn.Module):
    """Cross-attention, which patches may replace by block number."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(channels, 4), nn.Linear(TEXT, 4), nn.Linear(TEXT, channels)

    def forward(self, x: torch.Tensor, context: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        q, k, v = self.q(x.flatten(2).transpose(1, 2)), self.k(context), self.v(context)
        replaced = options.get("patches_replace", {}).get(options["block"])
        attend = _attend if replaced is None else replaced
        out = attend(q, k, v, options)
        return x + out.transpose(1, 2).reshape(x.shape)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor, size: torch.Size | None) -> torch.Tensor:
        shape = [2 * side for side in x.shape[2:]] if size is None else size[2:]
        return self.conv(nn.functional.interpolate(x, list(shape)))


class Layers(nn.Sequential):
    """The layers of a block. The model runs them one by one and never calls the block."""


class LdmUNet(nn.Module):
    """Two levels of two blocks each: six skip connections.

    Args:
        taken: channels of the input; what is more than four belongs to an image to start from.
    """

    def __init__(self, taken: int = 4) -> None:
        super().__init__()
        self.in_channels, self.out_channels = taken, 4
        wide = 2 * CHANNELS
        self.input_blocks = nn.ModuleList(
            [
                Layers(nn.Conv2d(taken, CHANNELS, 3, padding=1)),
                Layers(ResBlock(CHANNELS, CHANNELS), SpatialTransformer(CHANNELS)),
                Layers(ResBlock(CHANNELS, CHANNELS), SpatialTransformer(CHANNELS)),
                Layers(nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1)),
                Layers(ResBlock(CHANNELS, wide), SpatialTransformer(wide)),
                Layers(ResBlock(wide, wide), SpatialTransformer(wide)),
            ]
        )
        self.middle_block = Layers(ResBlock(wide, wide), SpatialTransformer(wide))
        self.output_blocks = nn.ModuleList(
            [
                Layers(ResBlock(2 * wide, wide), SpatialTransformer(wide)),
                Layers(ResBlock(2 * wide, wide), SpatialTransformer(wide)),
                Layers(ResBlock(wide + CHANNELS, wide), SpatialTransformer(wide), Upsample(wide)),
                Layers(ResBlock(wide + CHANNELS, CHANNELS), SpatialTransformer(CHANNELS)),
                Layers(ResBlock(2 * CHANNELS, CHANNELS), SpatialTransformer(CHANNELS)),
                Layers(ResBlock(2 * CHANNELS, CHANNELS), SpatialTransformer(CHANNELS)),
            ]
        )
        self.out = nn.Conv2d(CHANNELS, 4, 3, padding=1)

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor,
        y: Any = None,
        control: Any = None,
        transformer_options: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        from tests.comfyui.stand_in import run_wrapped

        options = {} if transformer_options is None else transformer_options
        arguments = (x, timesteps, context, y, control, options)
        return run_wrapped("diffusion_model", self._forward, self, options, *arguments, **kwargs)

    def _forward(self, x: Any, timesteps: Any, context: Any, y: Any, control: Any, options: Any) -> torch.Tensor:
        options["transformer_index"] = 0
        patches = options.get("patches", {})
        emb = torch.cos(timesteps[:, None] / 100 * torch.arange(1, CHANNELS + 1, device=x.device))
        h, skips = x, []
        for number, block in enumerate(self.input_blocks):
            options["block"] = ("input", number)
            h = _add(control, "input", _run(block, h, emb, context, options))
            for patch in patches.get("input_block_patch", ()):
                h = patch(h, options)
            skips.append(h)
        options["block"] = ("middle", 0)
        h = _add(control, "middle", _run(self.middle_block, h, emb, context, options))
        for patch in patches.get("middle_block_after_patch", ()):
            h = patch({"h": h})["h"]
        for number, block in enumerate(self.output_blocks):
            options["block"] = ("output", number)
            skip = _add(control, "output", skips.pop())
            for patch in patches.get("output_block_patch", ()):
                h, skip = patch(h, skip, options)
            size = skips[-1].shape if skips else None
            h = _run(block, torch.cat([h, skip], dim=1), emb, context, options, size)
        return self.out(h)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    return torch.softmax(q @ k.transpose(1, 2), dim=-1) @ v


def _run(block: Any, h: Any, emb: Any, context: Any, options: Any, size: Any = None) -> torch.Tensor:
    handlers = options.get("patches", {}).get("forward_timestep_embed_patch", ())
    for layer in block:
        handler = next((run for kind, run in handlers if isinstance(layer, kind)), None)
        if handler is not None:
            h = handler(layer, h, emb, context, options)
            continue
        if isinstance(layer, ResBlock):
            h = layer(h, emb)
        elif isinstance(layer, SpatialTransformer):
            h = layer(h, context, options)
            options["transformer_index"] += 1
        elif isinstance(layer, Upsample):
            h = layer(h, size)
        else:
            h = layer(h)
    return h


def _add(control: Any, where: str, h: torch.Tensor) -> torch.Tensor:
    """Adds the last residual for a position."""
    residuals = (control or {}).get(where)
    return h + residuals.pop() if residuals else h
