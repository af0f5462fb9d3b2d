"""The stored deep feature: the one tensor that passes from a full step to the shallow steps after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from DeepCache.engine.attention import AttentionCalls

__all__ = ["DeepFeature", "FeatureOutlet", "FeatureTap"]


@dataclass(frozen=True)
class DeepFeature:
    """A deep feature and the kind of U-Net input it belongs to.

    Args:
        tensor: the deep feature, a copy of its own without autograd history.
        step: the step of the trajectory that it was made at.
        made_for: shape, dtype and device of the sample of the full step.
        attention: calls of deep attention layers that the pipeline listens to.
    """

    tensor: torch.Tensor
    step: int
    made_for: tuple[torch.Size, torch.dtype, torch.device]
    attention: AttentionCalls

    @property
    def bytes(self) -> int:
        return self.tensor.nbytes + self.attention.bytes

    def fits(self, sample: torch.Tensor) -> bool:
        """Whether a shallow step on this sample may use the feature."""
        return self.made_for == (sample.shape, sample.dtype, sample.device)


class FeatureTap:
    """A forward hook that keeps a copy of the latest output of the modules it is registered on.

    A layer is several modules (resnet, attention, motion module, …). The tap sits on each of them and the last one
    to run wins, so that nobody needs to know their order.
    """

    def __init__(self) -> None:
        # A fixed attribute rather than an entry of a dictionary: torch.compile would guard on the keys.
        self.tensor: torch.Tensor | None = None
        # Open during a full step. A compiled full step is told apart by it, since torch.compile guards on an attribute
        # that it has read and not on attributes that hide a registered child; and modules that another U-Net borrows
        # (Versatile Diffusion) are left alone there.
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


class FeatureOutlet(nn.Module):
    """Stands in for the mid block on a shallow step and returns the stored deep feature, whatever it is called with.

    A mid block that is called with the hidden states of two paths (ControlNet-XS) hands both on; those of the second
    come back as they are, since nothing after the mid block uses them.
    """

    # Diffusers' U-Nets ask a mid block this before they call it.
    has_cross_attention = False

    def __init__(self) -> None:
        super().__init__()
        self.tensor: torch.Tensor | None = None
        # What is to be done where the deep layers would run.
        self.meanwhile: Callable[[], None] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        assert self.tensor is not None
        if self.meanwhile is not None:
            self.meanwhile()
        _, *others = [value for name, value in kwargs.items() if name.startswith("hidden_states")] or [None]
        return (self.tensor.clone(), *others) if others else self.tensor.clone()
