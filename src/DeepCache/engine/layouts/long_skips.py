"""Transformers with long skips in one list: the second half of `blocks` takes what the first half made.

HunyuanDiT (Li et al., *Hunyuan-DiT*, 2024). Its loop counts the blocks, so a shallow step shows it as many: those that
are left out hand on what they get, and the last of them returns the stored deep feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from DeepCache.engine.layouts.layout import CachedFeature, Layout, Overlay, SkipBranch, cannot_cut

__all__ = ["LongSkipsLayout"]


class LongSkipsLayout(Layout):
    """Transformers whose `blocks` take a long skip where they have a `skip_linear`.

    A ControlNet's residuals go with the skips, from the deepest, and the loop takes them at the blocks that are left
    out too, so no argument has to change.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__(denoiser)
        self._blocks: list[nn.Module] = list(cast(nn.ModuleList, denoiser.blocks))
        takers = [_takes_a_skip(block) for block in self._blocks]
        count = sum(takers)
        if 2 * count >= len(takers) or not all(takers[-count:]):
            raise cannot_cut(denoiser, "its blocks with a 'skip_linear' are not the last ones, or more than half")
        self.branches = tuple(SkipBranch(number, f"blocks.{number}") for number in range(count))

    @classmethod
    def recognises(cls, denoiser: nn.Module) -> bool:
        blocks = denoiser._modules.get("blocks")
        return isinstance(blocks, nn.ModuleList) and any(map(_takes_a_skip, blocks))

    def overlays(self, branch: SkipBranch, cached: CachedFeature) -> Iterator[Overlay]:
        kept = branch.number + 1
        between = [_HandOn() for _ in range(len(self._blocks) - 2 * kept - 1)]
        blocks = [*self._blocks[:kept], *between, cached, *self._blocks[-kept:]]
        yield Overlay(self.denoiser, "blocks", nn.ModuleList(blocks))

    def tapped(self, branch: SkipBranch) -> list[nn.Module]:
        return [self._blocks[len(self._blocks) - branch.number - 2]]


class _HandOn(nn.Module):
    """A block that is left out."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states


def _takes_a_skip(block: nn.Module) -> bool:
    return getattr(block, "skip_linear", None) is not None
