"""The patch of a denoiser for a shallow step: the same module with some children hidden for the length of one call.

A shallow step must run the layers above its skip branch and nothing else. A denoiser loops over its blocks, so it is
enough to show it shorter lists. The patch puts such lists over the real children as instance attributes, which Python
finds before it looks among a module's registered children. What is registered (parameters, buffers, `state_dict`,
`to`) is never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from DeepCache.engine.layouts import CachedFeature, Layout, SkipBranch

__all__ = ["ClassSwap", "ShallowPatch"]

_ABSENT = object()


class ClassSwap:
    """Gives modules a class of their own for the length of a call, which is like theirs in all but its identity.

    `torch.compile` guards on the class before anything else, and not on hooks or on attributes that hide a child: this
    keeps its graphs of one kind of step from being taken for another kind, or for another denoiser.

    Args:
        modules: the modules.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = list(modules)
        self._classes: dict[Any, Any] = {}
        self._before: list[tuple[nn.Module, Any]] = []

    def apply(self) -> None:
        """Changes the classes."""
        for module in self._modules:
            kind: Any = type(module)
            if kind not in self._classes:
                names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
                self._classes[kind] = type(kind.__name__, (kind,), names)
            self._before.append((module, kind))
            object.__setattr__(module, "__class__", self._classes[kind])

    def remove(self) -> None:
        """Changes them back. Safe where nothing was changed, or only a part."""
        while self._before:
            module, kind = self._before[-1]
            object.__setattr__(module, "__class__", kind)
            self._before.pop()

    def __getstate__(self) -> dict[str, Any]:
        # Classes that are made here cannot be pickled.
        return self.__dict__ | {"_classes": {}}


class ShallowPatch:
    """What a shallow step at one skip branch hides of a denoiser.

    Args:
        layout: the layout of the denoiser.
        branch: one of its skip branches.

    Attributes:
        owners: the modules that have something hidden, the denoiser among them.
        kept: the entries of their lists that a shallow step runs, some of them in part.
        hidden: those that it leaves out.
        replaced: those in whose place it has the deep feature.

    Example:
        >>> from diffusers import UNet2DConditionModel
        >>> from DeepCache.engine.layouts import layout_of
        >>> unet = UNet2DConditionModel(block_out_channels=(32, 64, 64, 64), cross_attention_dim=32)
        >>> layout = layout_of(unet)
        >>> patch = ShallowPatch(layout, layout.branches[0])
        >>> patch.apply(feature=None)
        >>> len(unet.down_blocks), len(unet.up_blocks)
        (0, 1)
        >>> patch.remove()
        >>> len(unet.down_blocks), len(unet.up_blocks)
        (4, 4)
    """

    def __init__(self, layout: Layout, branch: SkipBranch) -> None:
        self._cached = CachedFeature()
        self._overlays = list(layout.overlays(branch, self._cached))
        self._originals: list[tuple[dict[str, Any], str, Any]] = []
        self.owners = list(dict.fromkeys(overlay.owner for overlay in self._overlays))
        self._swap = ClassSwap(self.owners)
        shown = {entry for overlay in self._overlays for entry in _entries(overlay.value)}
        self.kept = [entry for entry in self.entries() if entry in shown]
        self.hidden = [entry for entry in self.entries() if entry not in shown]
        places = [overlay for overlay in self._overlays if overlay.value is self._cached]
        self.replaced = [entry for owner, name, _ in places for entry in _entries(getattr(owner, name))]

    def entries(self) -> list[nn.Module]:
        """What the patch was made of, as it is now: other modules where somebody has replaced a block or a layer."""
        return [entry for owner, name, _ in self._overlays for entry in _entries(getattr(owner, name, None))]

    def apply(self, feature: Any, meanwhile: Callable[[], None] | None = None) -> None:
        """Hides the deep part, in whose place `meanwhile` is called and `feature` returned."""
        self._cached.hold(feature, meanwhile)
        for owner, name, value in self._overlays:
            attributes = owner.__dict__
            # A mid block that is None is an attribute already.
            self._originals.append((attributes, name, attributes.get(name, _ABSENT)))
            attributes[name] = value
        self._swap.apply()

    def remove(self) -> None:
        """Shows it again. Safe where nothing was hidden, or only a part."""
        while self._originals:
            attributes, name, original = self._originals[-1]
            if original is _ABSENT:
                attributes.pop(name, None)
            else:
                attributes[name] = original
            self._originals.pop()
        self._swap.remove()
        self._cached.hold(None)


def _entries(value: nn.Module | None) -> list[nn.Module]:
    """A module, or those in a list of modules or of lists of them."""
    if isinstance(value, nn.ModuleList):
        return [entry for each in value for entry in _entries(each)]
    return [] if value is None else [value]
