"""Takes the deep feature on a full step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["FeatureCapture", "refuse_further_states"]


def refuse_further_states(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """A forward hook that refuses what a deep feature cannot stand for: a block that hands on more than the hidden
    states, as those of IDM-VTON do.

    Raises:
        TypeError: it returned more tensors or numbers than the hidden states that it was called with.
    """
    if not isinstance(output, tuple) or len(output) < 2:
        return
    # A mid block may be called with the hidden states of two paths (ControlNet-XS), see `CachedFeature`.
    if len(output) > sum(name.startswith("hidden_states") for name in kwargs):
        raise TypeError(
            f"DeepCache cannot cut this denoiser: its {type(module).__name__} returns {len(output)} values, and a "
            "shallow step has the hidden states alone. Disable DeepCache for it"
        )


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

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self.open:
            return
        refuse_further_states(module, args, kwargs, output)
        tensor = output if isinstance(output, torch.Tensor) else output[0]
        # A copy, since FreeU and adapters change hidden states in place.
        self.tensor = tensor.detach().clone()

    def take(self) -> torch.Tensor | None:
        """Hands the tensor over and forgets it."""
        tensor, self.tensor = self.tensor, None
        return tensor
