"""The tensors of one slot, which pass from a full step to the steps after it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from DeepCache.engine.attention import AttentionCalls
from DeepCache.engine.forecast import Forecast, PredictionForecast
from DeepCache.engine.guidance import join_halves, output_tensor, with_tensor
from DeepCache.schedule import Step


class Slot:
    """The deep feature of one slot at each branch that is used, and everything else that is forecast for it.

    Args:
        sample: the sample of the call; steps with another shape, dtype or device cannot use the slot.
        branches: the skip branches that shallow steps use.
        order: the highest order of the forecasts.
        guided: whether the batch is the two halves of classifier-free guidance, and some steps run one of them.
        stiffness: how strongly the run responds to an error of a forecast.
        prompt_half: which of the two halves has the prompt.

    Attributes:
        last_full: number of the last full step.
        attention: the calls at that step of deep attention layers that the pipeline reads.
        features: the deep feature by the number of its branch, without autograd history.
        guidance: the prediction without the prompt minus the one with it; None if it is not used.
        prediction: the prediction; None if no step is skipped.
        output: the last output of the denoiser, with that prediction in it.
    """

    def __init__(
        self,
        sample: torch.Tensor,
        branches: Iterable[int],
        order: int,
        guided: bool,
        stiffness: float,
        prompt_half: int = 1,
    ) -> None:
        self._made_for = (sample.shape, sample.dtype, sample.device)
        self._prompt_half = prompt_half
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
        """Whether a step on this sample may use the slot."""
        return self._made_for == (sample.shape, sample.dtype, sample.device)

    def feature(self, number: int, step: Step) -> torch.Tensor:
        """The deep feature of a shallow step, for the part of the batch that it runs."""
        half = self._prompt_half if step.guidance_reuse else None
        return self.features[step.branch].at(number, step.forecast, half)

    def whole_feature(self, number: int, step: Step, branch: int, computed: torch.Tensor) -> torch.Tensor:
        """A computed deep feature, with a forecast for the half of the batch that did not run."""
        if not step.guidance_reuse:
            return computed
        other = self.features[branch].at(number, step.forecast, 1 - self._prompt_half)
        return torch.cat([other, computed] if self._prompt_half else [computed, other])

    def guided(self, number: int, step: Step, output: Any) -> Any:
        """The output for both halves of the batch if only one ran; else the output itself, whose guidance is kept."""
        if self.guidance is None:
            return output
        if step.guidance_reuse:
            difference = self.guidance.at(number, step.forecast)
            return with_tensor(output, join_halves(output_tensor(output), difference, self._prompt_half))
        halves = output_tensor(output).detach().chunk(2)
        self.guidance.add(number, halves[1 - self._prompt_half] - halves[self._prompt_half])
        return output

    def skipped(self, number: int, step: Step, sample: torch.Tensor) -> Any:
        """The output of a step that runs no layer; `sample` is its latents."""
        assert self.prediction is not None
        # A copy, since a scheduler may change its input, and the forecast may be the stored tensor itself.
        return with_tensor(self.output, self.prediction.at(number, sample, step.forecast).clone())
