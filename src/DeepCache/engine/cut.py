"""What it takes to cut a denoiser at one skip branch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from DeepCache.engine.capture import FeatureCapture
from DeepCache.engine.layouts import Layout, SkipBranch
from DeepCache.engine.patch import ShallowPatch

__all__ = ["Cut"]


class Cut:
    """A skip branch of a denoiser that is cut on shallow steps, with all that it takes.

    Args:
        layout: the layout of the denoiser.
        branch: the skip branch.

    Attributes:
        name: where the skip connection begins.
        patch: what a shallow step hides.
        capture: keeps the deep feature of a step that renews it.
        tapped: the modules that it is to be registered on.
        replaced: those in whose place a shallow step has the deep feature.
        deep_attention: the attention layers, those with a processor, that a shallow step leaves out.
        buffers: see `buffered`.
        grouped: whether any block is offloaded in a group, found out at the start of a run.
    """

    def __init__(self, layout: Layout, branch: SkipBranch) -> None:
        self._layout, self._branch = layout, branch
        self.name = branch.name
        self.patch = ShallowPatch(layout, branch)
        self.capture = FeatureCapture()
        self.tapped = list(layout.tapped(branch))
        self.replaced = self.patch.replaced
        inside = dict.fromkeys(module for entry in self.patch.hidden for module in entry.modules())
        self.deep_attention: list[nn.Module] = [module for module in inside if hasattr(module, "processor")]
        self.buffers: dict[Any, torch.Tensor] = {}
        self.grouped = False

    def parts(self) -> list[nn.Module]:
        """The modules that the cut was made of, as they are now."""
        return [*self.patch.entries(), *self._layout.tapped(self._branch)]

    def narrow(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call without what belongs to the deep part."""
        return self._layout.narrow_call(self._branch, args, kwargs)

    def buffered(self, feature: torch.Tensor) -> torch.Tensor:
        """The deep feature in a buffer that stays: a CUDA graph reads what a module holds where it was when the graph
        was captured, and is captured anew where that has moved."""
        key = (feature.shape, feature.dtype, feature.device)
        if key not in self.buffers:
            # Also where this run is in inference mode and the next is not.
            with torch.inference_mode(False):
                self.buffers[key] = torch.empty_like(feature)
        return self.buffers[key].copy_(feature)
