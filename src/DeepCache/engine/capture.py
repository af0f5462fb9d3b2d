"""Takes the deep feature on a full step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["FeatureCapture"]


class FeatureCapture:
    """A forward hook that keeps a copy of the latest output of the modules it is registered on.

    A layer is several modules (resnet, attention, motion module, …). The hook sits on each of them and the last one to
    run wins, so that nobody needs to know their order.
    """

    def __init__(self) -> None:
        # A fixed attribute rather than an entry of a dictionary: torch.compile would guard on the keys.
        self.tensor: torch.Tensor | None = None
        # Open during a step that renews the feature. Modules that another U-Net borrows (Versatile Diffusion) are left
        # alone there.
        self.open = False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self.open:
            return
        tensor = output if isinstance(output, torch.Tensor) else output[0]
        # A copy, since FreeU and adapters change hidden states in place.
        self.tensor = tensor.detach().clone()

    def take(self) -> torch.Tensor | None:
        """Hands the tensor over and forgets it."""
        tensor, self.tensor = self.tensor, None
        return tensor
