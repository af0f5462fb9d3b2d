"""Transformers with long skips in one list: the second half of `blocks` takes the skips that the first half makes.

HunyuanDiT (Li et al., *Hunyuan-DiT*, 2024). Its loop counts the blocks, so a shallow step shows it as many: those that
do not run are replaced by identities, and the last of them by the stored deep feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from DeepCache.engine.layouts.layout import CachedFeature, Layout, Overlay, SkipBranch, cannot_cut


class LongSkipsLayout(Layout):
    """Transformers whose `blocks` take a long skip if they have a `skip_linear`.

    A ControlNet's residuals are added to the skips, from the deepest, and the loop consumes them at the replaced blocks
    too, so no argument has to change.
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
        between = [_Identity() for _ in range(len(self._blocks) - 2 * kept - 1)]
        blocks = [*self._blocks[:kept], *between, cached, *self._blocks[-kept:]]
        yield Overlay(self.denoiser, "blocks", nn.ModuleList(blocks))

    def tapped(self, branch: SkipBranch) -> list[nn.Module]:
        return [self._blocks[len(self._blocks) - branch.number - 2]]


class _Identity(nn.Module):
    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states


def _takes_a_skip(block: nn.Module) -> bool:
    return getattr(block, "skip_linear", None) is not None
