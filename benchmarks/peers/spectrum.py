"""Spectrum (CVPR 2026, arXiv 2603.01623), and the settings of its ComfyUI node for SDXL."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.peers.peer import Call

__all__ = ["Spectrum"]


class Spectrum:
    """Forecasts the last hidden feature by Chebyshev polynomials fitted to those of all full steps, and runs the head.

    The fit is a ridge regression over the step's place in the run, mixed with a linear continuation of the last two
    full steps: `weight * fit + (1 - weight) * line`. After `warmup` full steps every second is full; each further full
    step makes the window longer by `flex`.

    Published: weight 0.5 to 1, ridge 0.1, degree 4, warm-up 5, window 2, flex 0.75 (14 of 50 steps) or 3 (10 of 50).
    The ComfyUI node recommends weight 0.3, degree 3, flex 0.25, warm-up 8 and full steps for the last three, and
    forecasts the prediction, so that not even the head runs.

    What differs: nothing known.
    """

    def __init__(
        self,
        weight: float = 0.5,
        flex: float = 0.75,
        degree: int = 4,
        warmup: int = 5,
        last: int = 0,
        hidden: bool = True,
        ridge: float = 0.1,
        window: float = 2.0,
    ) -> None:
        self._weight, self._flex, self._degree, self._ridge = weight, flex, degree, ridge
        self._warmup, self._last, self._hidden, self._window = warmup, last, hidden, window
        self._numbers: list[int] = []
        self._features: list[Tensor] = []

    def predict(self, call: Call) -> Tensor:
        warm = call.number < self._warmup or call.number >= call.steps - self._last
        if warm or call.number - self._numbers[-1] >= int(self._window):
            if not warm:
                self._window += self._flex
            return self._full(call)
        forecast = self._forecast(call)
        return call.part("head", lambda: _head(call, forecast)) if self._hidden else call.skip(forecast)

    def _full(self, call: Call) -> Tensor:
        if self._hidden:
            handle = call.unet.conv_norm_out.register_forward_pre_hook(lambda _, given: self._features.append(given[0]))
            prediction = call.full()
            handle.remove()
        else:
            prediction = call.full()
            self._features.append(prediction)
        self._numbers.append(call.number)
        return prediction

    def _forecast(self, call: Call) -> Tensor:
        places = torch.tensor([*self._numbers, call.number], dtype=torch.float64) / call.steps * 2 - 1
        basis = torch.cos(torch.arange(self._degree + 1) * torch.acos(places)[:, None])
        known, wanted = basis[:-1], basis[-1]
        damped = known.T @ known + self._ridge * torch.eye(self._degree + 1, dtype=torch.float64)
        weights = self._weight * (wanted @ torch.linalg.solve(damped, known.T))
        ahead = (call.number - self._numbers[-1]) / (self._numbers[-1] - self._numbers[-2])
        weights[-1] += (1 - self._weight) * (1 + ahead)
        weights[-2] -= (1 - self._weight) * ahead
        return sum(weight * feature for weight, feature in zip(weights.tolist(), self._features, strict=True))


def _head(call: Call, feature: Tensor) -> Tensor:
    unet = call.unet
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(feature)))
