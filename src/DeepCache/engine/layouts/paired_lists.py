"""Two lists of blocks with a block between them: every entry of the first makes a skip, every entry of the second takes
one.

This is the layout of CompVis' `UNetModel` (`input_blocks`, `middle_block`, `output_blocks`), which the original
repositories, A1111, ComfyUI and much research code use, and of the U-ViTs (Bao et al., *All are Worth Words*, 2022).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from DeepCache.engine.layouts.layout import Args, CachedFeature, Kwargs, Layout, Overlay, SkipBranch, cannot_cut, own


class _Names(NamedTuple):
    first: str
    middle: str
    second: str


_LDM = _Names("input_blocks", "middle_block", "output_blocks")
_UVIT = _Names("in_blocks", "mid_block", "out_blocks")
_UNIDIFFUSER = _Names("transformer_in_blocks", "transformer_mid_block", "transformer_out_blocks")


class PairedListsLayout(Layout):
    """U-Nets with the layout of latent diffusion, and U-ViTs."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__(denoiser)
        found = _find(denoiser)
        assert found is not None
        path, self._owner, self._names = found
        self._first, self._second = (list(getattr(self._owner, name)) for name in self._names[::2])
        if len(self._first) != len(self._second):
            counts = f"{len(self._first)} {self._names.first} and {len(self._second)} {self._names.second}"
            raise cannot_cut(denoiser, f"it has {counts}, and needs as many of each")
        for name, child in self._owner.named_children():
            if isinstance(child, nn.ModuleList) and name not in self._names and len(child) == len(self._first):
                beside = f"'{name}' has as many modules as '{self._names.first}'"
                raise cannot_cut(denoiser, f"{beside}, and it is unknown which of them a shallow step needs")
        # Without a middle block a cut at the deepest skip would save nothing.
        count = len(self._first) - (getattr(self._owner, self._names.middle) is None)
        self.branches = tuple(SkipBranch(number, f"{path}{self._names.first}.{number}") for number in range(count))

    @classmethod
    def recognises(cls, denoiser: nn.Module) -> bool:
        return _find(denoiser) is not None

    def overlays(self, branch: SkipBranch, cached: CachedFeature) -> Iterator[Overlay]:
        kept = branch.number + 1
        yield Overlay(self._owner, self._names.first, nn.ModuleList(self._first[:kept]))
        yield Overlay(self._owner, self._names.middle, cached)
        yield Overlay(self._owner, self._names.second, nn.ModuleList(self._second[-kept:]))

    def tapped(self, branch: SkipBranch) -> list[nn.Module]:
        before = len(self._second) - branch.number - 2
        block = self._second[before] if before >= 0 else getattr(self._owner, self._names.middle)
        # ComfyUI and UniDiffuser call the layers of a block, and not the block.
        layers = list(block.children()) if isinstance(block, (nn.Sequential, nn.ModuleDict)) else []
        return [*layers, block]

    def narrow(self, branch: SkipBranch, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """`control` holds ControlNet's residuals, which the U-Net takes from the end: the middle block's, then one for
        each output block from the deepest. They are a list in CompVis' ControlNet, a dictionary of lists in ComfyUI."""
        control, omitted = kwargs.get("control"), len(self._second) - branch.number - 1
        # With a cut right after the middle block, the U-Net adds its residual to the deep feature.
        if self._names is not _LDM or control is None or omitted == 0:
            return args, kwargs
        if isinstance(control, dict):
            output = control.get("output") or []
            taken = max(0, len(output) - omitted)
            narrowed: Any = {**control, "middle": [], "output": list(output[:taken])}
        else:
            narrowed = [*control[: branch.number + 1], 0]
        return args, kwargs | {"control": narrowed}


def _find(denoiser: nn.Module) -> tuple[str, nn.Module, _Names] | None:
    """The path to the module that has the lists, the module, and their names."""
    for names in (_LDM, _UVIT):
        if _has(denoiser, names):
            return "", denoiser, names
    for path, child in denoiser.named_children():
        if _has(child, _UNIDIFFUSER):
            return f"{path}.", child, _UNIDIFFUSER
    return None


def _has(module: nn.Module, names: _Names) -> bool:
    lists = (own(module, name) for name in names[::2])
    return hasattr(module, names.middle) and all(isinstance(entries, nn.ModuleList) and entries for entries in lists)
