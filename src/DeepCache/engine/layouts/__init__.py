"""Layouts: what the engine knows of the families of denoisers, one file each."""

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
    """Registers a layout for a further family of denoisers. Can be used as a decorator.

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
    """Whether a module looks like a denoiser of a family that DeepCache knows, be it one that it can cut or not."""
    return any(layout.recognises(module) for layout in _LAYOUTS)


def layout_of(denoiser: nn.Module) -> Layout:
    """The layout that a denoiser is cut by.

    Raises:
        TypeError: it is of no family that has skip connections, or cannot be cut; the message says why.
    """
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
    """Where a denoiser can be cut, from the shallowest skip connection to the deepest.

    Raises:
        TypeError: it cannot be cut; the message says why.

    Example:
        >>> from diffusers import UNet2DConditionModel
        >>> unet = UNet2DConditionModel(block_out_channels=(32, 64, 64, 64), cross_attention_dim=32)
        >>> len(skip_branches(unet))
        12
    """
    return layout_of(denoiser).branches


def branch_of(denoiser: nn.Module, number: int) -> SkipBranch:
    """The skip branch of that number.

    Raises:
        ValueError: the denoiser has none so deep.
        TypeError: it cannot be cut.
    """
    branches = skip_branches(denoiser)
    if number >= len(branches):
        raise ValueError(
            f"cache_branch_id must be from 0 to {len(branches) - 1} for this {type(denoiser).__name__}, got {number}"
        )
    return branches[number]
