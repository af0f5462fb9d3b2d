"""Forecasts of the U-Net's prediction, for steps at which none of its layers runs.

The prediction of a step depends on the input of that step, which is known. The `"response"` forecast re-uses the latest
prediction and adds what the prediction answered to a change of the input so far: one number for each sample, the least
squares slope of the last change of the prediction over that of the input (a secant approximation to the Jacobian by a
multiple of the identity; Barzilai and Borwein, *Two-point step size gradient methods*, 1988). It follows the input, so
it does not carry an error of the run on as a line through past predictions does, and is the safer one at a high
guidance scale. EasyCache's rule, prediction minus input re-used, is the case in which that number is 1.
"""

from __future__ import annotations

import torch

from DeepCache.engine.forecast import Forecast
from DeepCache.engine.torch_versions import bytes_of
from DeepCache.schedule import ForecastRule

__all__ = ["PredictionForecast"]


class PredictionForecast:
    """The latest predictions of a U-Net, continued.

    Args:
        order: how many differences the forecasts take into account, see `Forecast`.
        response: the response of the prediction to the input, -1 to 1, while there is only one value to go by; None
            where the response is not asked for, and nothing is kept for it.
        stiffness: how strongly the run answers to an error, see `Forecast`.

    Example:
        >>> forecast = PredictionForecast(order=2, response=1.0)
        >>> forecast.add(0, sample=torch.tensor([[4.0]]), prediction=torch.tensor([[1.0]]))
        >>> forecast.at(1, torch.tensor([[3.0]]), "response")
        tensor([[0.]])
        >>> forecast.add(1, sample=torch.tensor([[2.0]]), prediction=torch.tensor([[0.0]]))
        >>> forecast.at(2, torch.tensor([[1.0]]), "response")
        tensor([[-0.5000]])
    """

    def __init__(self, order: int, response: float | None, stiffness: float = 0.0) -> None:
        self._predictions = Forecast(order, stiffness)
        self._response: float | torch.Tensor | None = response
        self._sample: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        """Size of what is kept."""
        return self._predictions.bytes + (0 if self._sample is None else bytes_of(self._sample))

    def add(self, place: float, sample: torch.Tensor, prediction: torch.Tensor) -> None:
        """Takes a further prediction and the input that it is of, at a place beyond the last one's. Both are kept and
        must not change.

        Args:
            place: the number of the step.
            sample: the latents, the batch first.
            prediction: of the shape of the sample, where the response is asked for.

        Raises:
            ValueError: the response is asked for, and predictions are not of the shape of the input.
        """
        if self._response is not None:
            if sample.shape != prediction.shape:
                raise ValueError(
                    "forecast='response' takes a U-Net whose prediction has the shape of its latents, got "
                    f"{tuple(prediction.shape)} for {tuple(sample.shape)}; take forecast='limited'"
                )
            if self._sample is not None:
                change = sample.float() - self._sample.float()
                self._response = _response(change, prediction.float() - self._predictions.at(place).float())
            self._sample = sample
        self._predictions.add(place, prediction)

    def at(self, place: float, sample: torch.Tensor, rule: ForecastRule) -> torch.Tensor:
        """The prediction at a step.

        Args:
            place: the number of the step.
            sample: its input.
            rule: one of `FORECASTS`.
        """
        if rule != "response":
            return self._predictions.at(place, rule)
        assert self._response is not None
        assert self._sample is not None
        latest = self._predictions.at(place)
        # Under autocast predictions are of another type than their inputs.
        return (latest + self._response * (sample - self._sample)).to(latest.dtype)


def _response(change: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """The least squares slope of the answer over the change, for each sample, from -1 to 1; both in float32."""
    sides = tuple(range(1, change.ndim))
    moved = change.square().sum(sides, keepdim=True)
    slope = (change * answer).sum(sides, keepdim=True) / moved.clamp_min(torch.finfo(torch.float32).tiny)
    return slope.clamp(-1, 1)
