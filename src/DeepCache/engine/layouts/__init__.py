"""Layouts: the structure of each family of denoisers, one file each."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from DeepCache.engine.layouts.blocks import BlocksLayout
from DeepCache.engine.layouts.layout import CachedFeature, Layout, Overlay, SkipBranch, cannot_cut
from DeepCache.engine.layouts.levels import LevelsLayout
from DeepCache.engine.layouts.long_skips import LongSkipsLayout
from DeepCache.engine.layouts.paired_lists import PairedListsLayout
from DeepCache.engine.layouts.whole_blocks import WholeBlocksLayout

__all__ = [
    "CachedFeature",
    "Layout",
    "Overlay",
    "SkipBranch",
    "branch_of",
    "is_recognised",
    "layout_of",
    "register_layout",
    "skip_branches",
]

_LAYOUTS: list[type[Layout]] = [LevelsLayout, BlocksLayout, WholeBlocksLayout, PairedListsLayout, LongSkipsLayout]

_L = TypeVar("_L", bound=type[Layout])


def register_layout(layout: _L) -> _L:
    """Registers a layout for another family of denoisers. Can be used as a decorator.

    Registered layouts are tried before the built-in ones, the latest first.

    Args:
        layout: a subclass of `Layout`.

    Returns:
        The same class.

    Raises:
        TypeError: it is not a subclass of `Layout`.
    """
    if not (isinstance(layout, type) and issubclass(layout, Layout)):
        raise TypeError(f"register_layout takes a subclass of Layout, got {layout!r}")
    _LAYOUTS.insert(0, layout)
    return layout


def is_recognised(module: nn.Module) -> bool:
    """Whether a module has the structure of a known family, even if it cannot be cut."""
    return any(layout.recognises(module) for layout in _LAYOUTS)


def layout_of(denoiser: nn.Module) -> Layout:
    """The layout of a denoiser; a `TypeError` that gives the reason if it cannot be cut."""
    refusals = []
    for layout in _LAYOUTS:
        if layout.recognises(denoiser):
            try:
                return layout(denoiser)
            except TypeError as refusal:
                refusals.append(refusal)
    if refusals:
        raise refusals[0]
    missing = [
        name for name in ("down_blocks", "up_blocks") if not isinstance(getattr(denoiser, name, None), nn.ModuleList)
    ]
    if len(missing) == 1:
        raise cannot_cut(denoiser, f"it has no nn.ModuleList {missing[0]!r}")
    raise cannot_cut(
        denoiser,
        "it has no skip connections that DeepCache knows of, from its first layers to its last. Use diffusers' own "
        "caches (enable_cache), or register_layout() if it has some",
    )


def skip_branches(denoiser: nn.Module) -> tuple[SkipBranch, ...]:
    """The skip connections at which a denoiser can be cut, from the shallowest to the deepest.

    Raises:
        TypeError: it cannot be cut; the message gives the reason.

    Example:
        >>> from diffusers import UNet2DConditionModel
        >>> unet = UNet2DConditionModel(block_out_channels=(32, 64, 64, 64), cross_attention_dim=32)
        >>> len(skip_branches(unet))
        12
    """
    return layout_of(denoiser).branches


def branch_of(denoiser: nn.Module, number: int) -> SkipBranch:
    """The skip branch with this number; a `ValueError` if the denoiser has none so deep."""
    branches = skip_branches(denoiser)
    if number >= len(branches):
        raise ValueError(
            f"cache_branch_id must be between 0 and {len(branches) - 1} for this {type(denoiser).__name__}, "
            f"got {number}"
        )
    return branches[number]
