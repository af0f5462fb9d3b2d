"""Blocks that make or take one skip connection each, so that a cut is between blocks.

Kandinsky 3 has no mid block and joins a skip to the input of each up block but the first; the K-blocks of the latent
upscaler and those of `UNet1DModel` join it to their first layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import cast

from torch import nn

from DeepCache.engine.layouts.blocks import has_blocks
from DeepCache.engine.layouts.layout import CachedFeature, Layout, Overlay, SkipBranch, cannot_cut

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class WholeBlocksLayout(Layout):
    """U-Nets whose blocks make or take one skip connection each."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__(denoiser)
        self._down: list[nn.Module] = list(cast(nn.ModuleList, denoiser.down_blocks))
        self._up: list[nn.Module] = list(cast(nn.ModuleList, denoiser.up_blocks))
        self._has_mid_block = hasattr(denoiser, "mid_block")
        # The skips of the shallowest blocks of a U-Net may be unused.
        self._unused = len(self._down) - len(self._up)
        if not self._up or self._unused < 0:
            raise cannot_cut(denoiser, f"it has {len(self._down)} down blocks and {len(self._up)} up blocks")
        if not self._has_mid_block and getattr(denoiser, "num_levels", None) != len(self._down):
            raise cannot_cut(denoiser, "it has neither a 'mid_block' nor 'num_levels' levels on both paths")
        if self._has_mid_block and not all(map(_takes_one_skip, self._up)):
            raise cannot_cut(denoiser, "its up blocks take skip connections in other places than their first layer")
        # Without a mid block, a cut below the deepest up block would save nothing.
        count = len(self._up) - (getattr(denoiser, "mid_block", None) is None)
        names = (f"down_blocks.{self._unused + number}" for number in range(count))
        self.branches = tuple(SkipBranch(number, name) for number, name in enumerate(names))

    @classmethod
    def recognises(cls, denoiser: nn.Module) -> bool:
        return has_blocks(denoiser)

    def overlays(self, branch: SkipBranch, cached: CachedFeature) -> Iterator[Overlay]:
        kept = branch.number + 1
        up = self._up[-kept:]
        yield Overlay(self.denoiser, "down_blocks", nn.ModuleList(self._down[: self._unused + kept]))
        if self._has_mid_block:
            yield Overlay(self.denoiser, "mid_block", cached)
        else:
            # The first up block takes no skip.
            up = [cached, *up]
        yield Overlay(self.denoiser, "up_blocks", nn.ModuleList(up))

    def tapped(self, branch: SkipBranch) -> list[nn.Module]:
        before = len(self._up) - branch.number - 2
        return [self._up[before] if before >= 0 else cast(nn.Module, self.denoiser.mid_block)]


def _takes_one_skip(block: nn.Module) -> bool:
    """Whether only the first layer of an up block is wider than its input, because a skip is joined there."""
    layers = getattr(block, "resnets", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        return False
    channels = [[part for part in layer.modules() if isinstance(part, _CONVOLUTIONS)] for layer in layers]
    return all(channels) and all(
        after[0].in_channels == before[-1].out_channels for before, after in pairwise(channels)
    )
