"""Narrowing: the same U-Net with some children hidden behind shorter ones for the length of one call.

A shallow step must run the layers above its skip branch and nothing else. Diffusers' U-Nets loop over their blocks and
every block over its layers, so it is enough to show them shorter lists. A narrowing lays such lists over the real
children as instance attributes, which Python finds before it looks among a module's registered children. What is
registered (parameters, buffers, `state_dict`, `to`) is never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from torch import nn

from DeepCache.engine.branches import SkipBranch, cut_layers, down_blocks, layer_count, samplers, up_blocks
from DeepCache.engine.feature import FeatureOutlet

__all__ = ["ClassMark", "Narrowing", "deep_attention_layers", "deep_feature_modules"]

_ADAPTER_RESIDUALS = "down_intrablock_additional_residuals"
_CONTROLNET_RESIDUALS = "down_block_additional_residuals"
_CONTROLNET_MID_RESIDUAL = "mid_block_additional_residual"


class ClassMark:
    """Gives modules a class of their own for the length of a call, which is like theirs in all but its identity.

    `torch.compile` guards on the class before anything else, and not on hooks or on attributes that hide a child: this
    keeps its graphs of one kind of step from being taken for another kind, or for another U-Net.

    Args:
        modules: the modules.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = list(modules)
        self._classes: dict[Any, Any] = {}
        self._before: list[tuple[nn.Module, Any]] = []

    def put_on(self) -> None:
        """Changes the classes."""
        for module in self._modules:
            kind: Any = type(module)
            self._before.append((module, kind))
            if kind not in self._classes:
                names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
                self._classes[kind] = type(kind.__name__, (kind,), names)
            object.__setattr__(module, "__class__", self._classes[kind])

    def take_off(self) -> None:
        """Changes them back. Safe where nothing was changed, or only a part."""
        while self._before:
            module, kind = self._before.pop()
            object.__setattr__(module, "__class__", kind)

    def __getstate__(self) -> dict[str, Any]:
        # Classes that are made here cannot be pickled.
        return self.__dict__ | {"_classes": {}}


class Narrowing:
    """What a shallow step at one skip branch lays over a U-Net.

    Args:
        unet: the U-Net, of the shape that `skip_branches` describes.
        branch: one of its skip branches.

    Attributes:
        blocks: the blocks that a shallow step runs, two of them in part.
        cut: the U-Net and those two.

    Example:
        >>> from diffusers import UNet2DConditionModel
        >>> from DeepCache.engine.branches import skip_branches
        >>> unet = UNet2DConditionModel(block_out_channels=(32, 64, 64, 64), cross_attention_dim=32)
        >>> narrowing = Narrowing(unet, skip_branches(unet)[0])
        >>> narrowing.apply(feature=None)
        >>> len(unet.down_blocks), len(unet.up_blocks)
        (0, 1)
        >>> narrowing.undo()
        >>> len(unet.down_blocks), len(unet.up_blocks)
        (4, 4)
    """

    def __init__(self, unet: nn.Module, branch: SkipBranch) -> None:
        self.blocks = _kept_blocks(unet, branch)
        self._outlet = FeatureOutlet()
        self._overlays = list(_overlays(unet, branch, self._outlet))
        self._originals: list[tuple[dict[str, Any], str, Any]] = []
        self.cut = list(dict.fromkeys(each[0] for each in self._overlays))
        self._mark = ClassMark(self.cut)
        self._adapter_residuals = _adapter_residuals_kept(unet, branch)
        # Cut right after the mid block: the whole down path runs, and the U-Net adds the residuals for the mid block to
        # what the outlet returns.
        self._keeps_all = branch.up_block == branch.up_layer == 0

    def apply(self, feature: Any, meanwhile: Callable[[], None] | None = None) -> None:
        """Lays the shorter lists over the U-Net; its mid block now calls `meanwhile` and returns `feature`."""
        self._outlet.hold(feature, meanwhile)
        for module, name, narrow in self._overlays:
            attributes = module.__dict__
            # A mid block that is None is an attribute already.
            self._originals.append((attributes, name, attributes.get(name, _ABSENT)))
            attributes[name] = narrow
        self._mark.put_on()

    def undo(self) -> None:
        """Takes them off again. Safe where nothing was applied, or only a part."""
        while self._originals:
            attributes, name, original = self._originals.pop()
            if original is _ABSENT:
                attributes.pop(name, None)
            else:
                attributes[name] = original
        self._mark.take_off()
        self._outlet.hold(None)

    def narrow_kwargs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments of a U-Net call without what belongs to the deep part.

        ControlNet's residual for the mid block is in the stored feature already, so it becomes a zero. T2I-Adapter's
        list of residuals is cut to those that the kept down blocks take: the U-Net would give the next one to whatever
        comes first of the same shape.
        """
        if self._keeps_all:
            return kwargs
        narrow = dict(kwargs)
        controlnet = narrow.get(_CONTROLNET_MID_RESIDUAL) is not None
        if controlnet:
            narrow[_CONTROLNET_MID_RESIDUAL] = 0
        if narrow.get(_ADAPTER_RESIDUALS) is not None:
            narrow[_ADAPTER_RESIDUALS] = list(narrow[_ADAPTER_RESIDUALS][: self._adapter_residuals])
        elif not controlnet and narrow.get(_CONTROLNET_RESIDUALS) is not None:
            # Without a residual for the mid block these are an adapter's, under the name they once had.
            narrow[_CONTROLNET_RESIDUALS] = list(narrow[_CONTROLNET_RESIDUALS][: self._adapter_residuals])
        return narrow


_ABSENT = object()


def _kept_blocks(unet: nn.Module, branch: SkipBranch) -> list[nn.Module]:
    """The blocks that a shallow step runs, two of them in part."""
    return [*down_blocks(unet)[: branch.down_block + bool(branch.layers)], *up_blocks(unet)[branch.up_block :]]


def _overlays(
    unet: nn.Module, branch: SkipBranch, outlet: FeatureOutlet
) -> Iterator[tuple[nn.Module, str, nn.Module | None]]:
    down, up = down_blocks(unet), up_blocks(unet)
    if branch.layers:
        cut = down[branch.down_block]
        for name, kept in cut_layers(cut, 0, branch.layers).items():
            yield cut, name, kept
        for name in samplers(cut):
            yield cut, name, None
        down = down[: branch.down_block + 1]
    else:
        down = down[: branch.down_block]
    yield unet, "down_blocks", nn.ModuleList(down)
    yield unet, "mid_block", outlet
    if branch.up_layer:
        cut = up[branch.up_block]
        for name, kept in cut_layers(cut, branch.up_layer).items():
            yield cut, name, kept
    yield unet, "up_blocks", nn.ModuleList(up[branch.up_block :])


def deep_feature_modules(unet: nn.Module, branch: SkipBranch) -> list[nn.Module]:
    """The modules of which the last one to run on a full step makes the deep feature of a branch."""
    if branch.up_layer:
        block = up_blocks(unet)[branch.up_block]
        return [entries[-1] for entries in cut_layers(block, 0, branch.up_layer).values()]
    if branch.up_block:
        return [up_blocks(unet)[branch.up_block - 1]]
    return [cast(nn.Module, unet.mid_block)]


def deep_attention_layers(unet: nn.Module, branch: SkipBranch) -> list[nn.Module]:
    """The attention layers, those with a processor, that a shallow step leaves out."""
    down, up = down_blocks(unet), up_blocks(unet)
    kept = [*down[: branch.down_block], *up[branch.up_block + 1 :]]
    if branch.layers:
        kept += cut_layers(down[branch.down_block], 0, branch.layers).values()
    kept += cut_layers(up[branch.up_block], branch.up_layer).values()
    runs = {module for part in kept for module in part.modules()}
    return [module for module in unet.modules() if hasattr(module, "processor") and module not in runs]


def _adapter_residuals_kept(unet: nn.Module, branch: SkipBranch) -> int:
    """How many of T2I-Adapter's residuals, one a down block, reach a skip connection that a shallow step uses."""
    if not branch.layers:
        return branch.down_block
    cut = down_blocks(unet)[branch.down_block]
    whole = branch.layers == layer_count(cut)
    # A block with cross-attention adds its residual after its last layer, any other one after its downsampler.
    reaches = getattr(cut, "has_cross_attention", False) or not samplers(cut)
    return branch.down_block + int(whole and reaches)
