"""Levels: `down_blocks` and `up_blocks` are lists of layers, one list per resolution, with one skip connection each.

The U-Nets of Würstchen and Stable Cascade (Pernias et al., *Würstchen*, 2023). The deepest level takes no skip, and a
level of the up path finds its skip by its number. So a shallow step shows one level below those that it keeps, with an
empty down path and the stored deep feature as its up path.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import nn

from DeepCache.engine.layouts.blocks import has_blocks
from DeepCache.engine.layouts.layout import CachedFeature, Layout, Overlay, SkipBranch, cannot_cut


class LevelsLayout(Layout):
    """U-Nets that keep the layers of a resolution in a list, and the samplers between them in parallel lists."""

    prompt_half = 0

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__(denoiser)
        lists = {name: child for name, child in denoiser.named_children() if isinstance(child, nn.ModuleList)}
        self._count = len(lists["down_blocks"])
        if self._count < 2 or len(lists["up_blocks"]) != self._count:
            counts = f"{self._count} levels of the down path and {len(lists['up_blocks'])} of the up path"
            raise cannot_cut(denoiser, f"it has {counts}, and needs two or more of each")
        # Lists parallel to the levels: of one path, or of both one after the other.
        self._down = {name for name, each in lists.items() if name.startswith("down_") and len(each) == self._count}
        self._up = {name for name, each in lists.items() if name.startswith("up_") and len(each) == self._count}
        self._both = {name for name, each in lists.items() if len(each) == 2 * self._count}
        self._lists = lists
        numbers = range(self._count - 1)
        self.branches = tuple(SkipBranch(number, f"down_blocks.{number}") for number in numbers)

    @classmethod
    def recognises(cls, denoiser: nn.Module) -> bool:
        return has_blocks(denoiser) and all(
            len(blocks) > 0 and all(isinstance(level, nn.ModuleList) for level in blocks)
            for blocks in (cast(nn.ModuleList, denoiser.down_blocks), cast(nn.ModuleList, denoiser.up_blocks))
        )

    def overlays(self, branch: SkipBranch, cached: CachedFeature) -> Iterator[Overlay]:
        kept = branch.number + 1
        for name in sorted(self._down):
            entries = self._lists[name]
            yield Overlay(self.denoiser, name, nn.ModuleList([*entries[:kept], _nothing(entries)]))
        for name in sorted(self._up):
            entries = self._lists[name]
            first = nn.ModuleList([cached]) if name == "up_blocks" else _nothing(entries)
            yield Overlay(self.denoiser, name, nn.ModuleList([first, *entries[-kept:]]))
        for name in sorted(self._both):
            every = list(self._lists[name])
            yield Overlay(self.denoiser, name, nn.ModuleList([*every[:kept], None, None, *every[-kept:]]))  # type: ignore[list-item]

    def tapped(self, branch: SkipBranch) -> list[nn.Module]:
        entries = [self._lists[name][self._count - branch.number - 2] for name in sorted(self._up)]
        # The last layer of the level, and its sampler if that is in a parallel list.
        return [entry[-1] if isinstance(entry, nn.ModuleList) else entry for entry in entries if not _empty(entry)]


def _nothing(entries: nn.ModuleList) -> nn.Module:
    """An entry of a list that does nothing."""
    return nn.ModuleList() if isinstance(entries[0], nn.ModuleList) else nn.Identity()


def _empty(entry: nn.Module) -> bool:
    return isinstance(entry, nn.ModuleList) and len(entry) == 0
