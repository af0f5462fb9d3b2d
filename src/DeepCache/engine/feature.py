"""The stored deep feature: what passes from a full step to the shallow steps after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from DeepCache.engine.attention import AttentionCalls
from DeepCache.engine.forecast import Forecast
from DeepCache.engine.prediction import PredictionForecast

__all__ = ["FeatureOutlet", "FeatureTap", "StoredSlot"]


class StoredSlot:
    """What one slot keeps from step to step: the deep feature at each branch that is used, and what else is forecast.

    Args:
        sample: the sample of the U-Net call, of which shape, dtype and device matter: for others nothing here is good.
        branches: the skip branches that shallow steps use.
        order: the highest order of the forecasts.
        guided: whether the batch is the two halves of classifier-free guidance.
        stiffness: how strongly the run answers to an error of a forecast.

    Attributes:
        last_full: number of the last full step.
        attention: calls of deep attention layers at that step that the pipeline listens to.
        features: the deep feature by the number of its branch, each a copy of its own without autograd history.
        guidance: the U-Net's prediction without the prompt minus that with it; None where that is of no use.
        prediction: the U-Net's prediction; None where no step is skipped.
        output: what the U-Net returned last, with that prediction in it.
    """

    def __init__(
        self, sample: torch.Tensor, branches: Iterable[int], order: int, guided: bool, stiffness: float
    ) -> None:
        self._made_for = (sample.shape, sample.dtype, sample.device)
        self.last_full = 0
        self.attention = AttentionCalls([])
        self.features = {branch: Forecast(order, stiffness) for branch in branches}
        self.guidance = Forecast(order, stiffness) if guided else None
        self.prediction: PredictionForecast | None = None
        self.output: Any = None

    @property
    def bytes(self) -> int:
        forecasts = (*self.features.values(), self.guidance, self.prediction)
        return sum(forecast.bytes for forecast in forecasts if forecast is not None) + self.attention.bytes

    def fits(self, sample: torch.Tensor) -> bool:
        """Whether a step on this sample may use what is kept."""
        return self._made_for == (sample.shape, sample.dtype, sample.device)


class FeatureTap:
    """A forward hook that keeps a copy of the latest output of the modules it is registered on.

    A layer is several modules (resnet, attention, motion module, …). The tap sits on each of them and the last one
    to run wins, so that nobody needs to know their order.
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

    def hold(self, tensor: torch.Tensor | None, meanwhile: Callable[[], None] | None = None) -> None:
        """Takes what the next call returns and does."""
        # Past `nn.Module.__setattr__`, which takes longer than all the rest that is laid over a U-Net.
        self.__dict__.update(tensor=tensor, meanwhile=meanwhile)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        assert self.tensor is not None
        if self.meanwhile is not None:
            self.meanwhile()
        _, *others = [value for name, value in kwargs.items() if name.startswith("hidden_states")] or [None]
        return (self.tensor.clone(), *others) if others else self.tensor.clone()
