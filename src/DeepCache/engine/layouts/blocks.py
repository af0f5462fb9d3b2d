"""Diffusers' block layout: `down_blocks`, `mid_block` and `up_blocks`, each block with its layers in lists.

Every layer and downsampler of the down path makes a skip connection, and every layer of the up path takes one. The
U-Nets loop over their blocks and every block over its layers, so a shallow step shows them shorter lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from torch import nn

from DeepCache.engine.layouts.layout import Args, CachedFeature, Kwargs, Layout, Overlay, SkipBranch, cannot_cut, own

_SAMPLERS = ("downsamplers", "upsamplers")
_ADAPTER_RESIDUALS = "down_intrablock_additional_residuals"
_CONTROLNET_RESIDUALS = "down_block_additional_residuals"
_CONTROLNET_MID_RESIDUAL = "mid_block_additional_residual"


@dataclass(frozen=True)
class BlockBranch(SkipBranch):
    """A skip connection between two blocks, and the part of the U-Net that a shallow step cut there runs.

    Args:
        down_block: the down block that is cut; every down block before it is kept whole.
        layers: number of layers of that down block that are kept.
        up_block: the up block that takes the skip connection; every up block after it is kept whole.
        up_layer: the layer of that up block that takes it, the first that is kept.
    """

    down_block: int
    layers: int
    up_block: int
    up_layer: int


class BlocksLayout(Layout):
    """U-Nets whose blocks keep their layers in `nn.ModuleList`s of one length each."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__(denoiser)
        if not hasattr(denoiser, "mid_block"):
            raise cannot_cut(denoiser, "it has no 'mid_block'")
        self._down: list[nn.Module] = list(cast(nn.ModuleList, denoiser.down_blocks))
        self._up: list[nn.Module] = list(cast(nn.ModuleList, denoiser.up_blocks))
        self.branches = self._find_branches()

    @classmethod
    def recognises(cls, denoiser: nn.Module) -> bool:
        return has_blocks(denoiser)

    def overlays(self, branch: BlockBranch, cached: CachedFeature) -> Iterator[Overlay]:
        kept = self._down[: branch.down_block + bool(branch.layers)]
        if branch.layers:
            cut = kept[-1]
            for name, entries in _cut_layers(cut, 0, branch.layers).items():
                yield Overlay(cut, name, entries)
            for name in _samplers(cut):
                yield Overlay(cut, name, None)
        yield Overlay(self.denoiser, "down_blocks", nn.ModuleList(kept))
        yield Overlay(self.denoiser, "mid_block", cached)
        if branch.up_layer:
            cut = self._up[branch.up_block]
            for name, entries in _cut_layers(cut, branch.up_layer).items():
                yield Overlay(cut, name, entries)
        yield Overlay(self.denoiser, "up_blocks", nn.ModuleList(self._up[branch.up_block :]))

    def tapped(self, branch: BlockBranch) -> list[nn.Module]:
        if branch.up_layer:
            block = self._up[branch.up_block]
            count = _layer_count(block) or 1
            lists = layer_lists(block).values()
            # The entry of a layer without a motion module is None (AnimateDiff).
            last = [entries[branch.up_layer * (len(entries) // count) - 1] for entries in lists]
            return [entry for entry in last if entry is not None]
        return [self._up[branch.up_block - 1] if branch.up_block else cast(nn.Module, self.denoiser.mid_block)]

    def narrow(self, branch: BlockBranch, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """ControlNet's residual for the mid block is part of the stored feature, so it becomes a zero. T2I-Adapter's
        residuals are cut to those that the kept down blocks take: the U-Net would add the next one elsewhere."""
        # With a cut right after the mid block the whole down path runs, and the U-Net adds the mid block's residuals.
        if branch.up_block == branch.up_layer == 0:
            return args, kwargs
        narrow = dict(kwargs)
        controlnet = narrow.get(_CONTROLNET_MID_RESIDUAL) is not None
        if controlnet:
            narrow[_CONTROLNET_MID_RESIDUAL] = 0
        # Without a residual for the mid block, those of a ControlNet are an adapter's under their former name.
        adapter = (
            _ADAPTER_RESIDUALS if controlnet or narrow.get(_ADAPTER_RESIDUALS) is not None else _CONTROLNET_RESIDUALS
        )
        if narrow.get(adapter) is not None:
            narrow[adapter] = list(narrow[adapter][: self._adapter_residuals(branch)])
        return args, narrow

    def _adapter_residuals(self, branch: BlockBranch) -> int:
        """How many of T2I-Adapter's residuals, one per down block, reach a skip connection that a shallow step uses."""
        if not branch.layers:
            return branch.down_block
        cut = self._down[branch.down_block]
        whole = branch.layers == _layer_count(cut)
        # A block with cross-attention adds its residual after its last layer, any other block after its downsampler.
        reaches = getattr(cut, "has_cross_attention", False) or not _samplers(cut)
        return branch.down_block + int(whole and reaches)

    def _find_branches(self) -> tuple[BlockBranch, ...]:
        origins = self._skip_origins()
        takers = [
            (index, layer)
            for index, block in enumerate(self._up)
            for layer in range(self._layers_of(f"up_blocks.{index}", block))
        ]
        if len(origins) != len(takers):
            made = f"its down path makes {len(origins)} skip connections, one per layer"
            raise cannot_cut(self.denoiser, f"{made}, and its up path takes {len(takers)}")
        # The last skip made is the first taken.
        pairs = zip(origins, reversed(takers), strict=True)
        branches = tuple(BlockBranch(number, *origin, *taker) for number, (origin, taker) in enumerate(pairs))
        # Below the deepest skip is only the mid block; without one a cut there would save nothing.
        return branches if self.denoiser.mid_block is not None else branches[:-1]

    def _skip_origins(self) -> list[tuple[str, int, int]]:
        """Name, down block and layers kept of every skip connection, in the order in which they are made."""
        origins = [("conv_in", 0, 0)]
        for index, block in enumerate(self._down):
            path = f"down_blocks.{index}"
            if hasattr(block, "skip_conv"):
                raise cannot_cut(self.denoiser, f"{path} carries a second state beside the hidden one (skip_conv)")
            for layer in range(self._layers_of(path, block)):
                origins.append((f"{path} layer {layer}", index, layer + 1))
            if _samplers(block):
                origins.append((f"{path} downsampler", index + 1, 0))
        return origins

    def _layers_of(self, path: str, block: nn.Module) -> int:
        count = _layer_count(block)
        if count is None:
            listing = ", ".join(f"{name} {len(layers)}" for name, layers in layer_lists(block).items())
            fault = f"the lists of layers of {path} differ in length ({listing})"
            raise cannot_cut(self.denoiser, fault if listing else f"{path} has no list of layers")
        return count


def has_blocks(denoiser: nn.Module) -> bool:
    """Whether a module has `down_blocks` and `up_blocks`."""
    return all(isinstance(own(denoiser, name), nn.ModuleList) for name in ("down_blocks", "up_blocks"))


def layer_lists(block: nn.Module) -> dict[str, nn.ModuleList]:
    """The per-layer lists of a block (`resnets`, `attentions`, `motion_modules`, …) by name."""
    return {
        name: child
        for name, child in block._modules.items()
        if isinstance(child, nn.ModuleList) and len(child) > 0 and not name.endswith(_SAMPLERS)
    }


def _samplers(block: nn.Module) -> list[str]:
    """The names of a block's samplers: `downsamplers` or `upsamplers`, in ControlNet-XS `base_downsamplers` and
    `ctrl_downsamplers`."""
    named = ((name, child) for name, child in block._modules.items() if name.endswith(_SAMPLERS))
    return [name for name, child in named if child is not None and not (isinstance(child, nn.ModuleList) and not child)]


def _layer_count(block: nn.Module) -> int | None:
    """The number of layers of a block, the length of its shortest list; None if its other lists do not match.

    A list may have several entries per layer (AudioLDM 2), or one more for the block's sampler (ControlNet-XS).
    """
    lengths = {len(entries) for entries in layer_lists(block).values()}
    if not lengths:
        return None
    count = min(lengths)
    # With a single layer, two entries of it look like one and one for the sampler.
    fits = all(
        length == count or (count > 1 and (length % count == 0 or (length == count + 1 and _samplers(block))))
        for length in lengths
    )
    return count if fits else None


def _cut_layers(block: nn.Module, start: int, stop: int | None = None) -> dict[str, nn.ModuleList]:
    """The per-layer lists of a block with only its layers from `start` to before `stop`, by name."""
    count = _layer_count(block)
    assert count is not None
    cut = {}
    for name, entries in layer_lists(block).items():
        each = len(entries) // count
        cut[name] = nn.ModuleList(entries[start * each : None if stop is None else stop * each])
    return cut
