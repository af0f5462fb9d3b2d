"""What it takes to cut a U-Net at one skip branch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from DeepCache.engine.branches import SkipBranch
from DeepCache.engine.feature import FeatureTap
from DeepCache.engine.narrowing import Narrowing, deep_attention_layers, deep_feature_modules

__all__ = ["Cut"]


class Cut:
    """A skip branch of a U-Net that is cut on shallow steps, with all that it takes.

    Args:
        unet: the U-Net.
        branch: the skip branch.

    Attributes:
        name: where the skip connection begins.
        narrowing: what a shallow step lays over the U-Net.
        tap: keeps the deep feature of a step that renews it.
        tapped: the modules that it is to be registered on.
        deep_attention: the attention layers that a shallow step leaves out.
        buffers: see `buffered`.
    """

    def __init__(self, unet: nn.Module, branch: SkipBranch) -> None:
        self.name = branch.name
        self.narrowing = Narrowing(unet, branch)
        self.tap = FeatureTap()
        self.tapped = deep_feature_modules(unet, branch)
        self.deep_attention = deep_attention_layers(unet, branch)
        self.buffers: dict[Any, torch.Tensor] = {}

    def buffered(self, feature: torch.Tensor) -> torch.Tensor:
        """The deep feature in a buffer that stays: a CUDA graph reads what a module holds where it was when the graph
        was captured, and is captured anew where that has moved."""
        key = (feature.shape, feature.dtype, feature.device)
        if key not in self.buffers:
            # Also where this run is in inference mode and the next is not.
            with torch.inference_mode(False):
                self.buffers[key] = torch.empty_like(feature)
        return self.buffers[key].copy_(feature)
