"""Decides during a run which steps are full, from how fast the error of a forecast grows.

At a full step both the truth and the forecast are known. Their difference over the distance that the U-Net's input has
moved since the last full step is a rate, and the rate times the distance moved since is the expected error. EasyCache
and TeaCache decide by accumulated change in a similar way; here the error of the forecast itself is accumulated.

The numbers come from the device. A decision reads only those of earlier steps, copied without waiting: the distances up
to the last step, whose input existed before its layers ran, and the errors up to the last step but one.
"""

from __future__ import annotations

import torch

from DeepCache.schedule import AdaptiveSchedule


class ErrorGrowth:
    """The decisions of one run."""

    def __init__(self, schedule: AdaptiveSchedule) -> None:
        self._schedule = schedule
        self._input: torch.Tensor | None = None
        self._distances: dict[int, _Late] = {}
        self._errors: list[tuple[int, int, _Late]] = []
        self._last_full = 0
        self._due: dict[int, bool] = {}

    def note_input(self, step: int, sample: torch.Tensor) -> None:
        """Records the input of a step; of several calls at a step only the first counts."""
        if step in self._distances:
            return
        sample = sample.detach()
        moved = None if self._input is None or self._input.shape != sample.shape else _norm(sample - self._input)
        self._distances[step] = _Late(moved)
        self._input = sample.clone()

    def note_full(self, step: int, error: torch.Tensor | None) -> None:
        """Records the `relative_error` that the forecast would have had at a full step."""
        if error is not None and step > self._last_full:
            self._errors.append((self._last_full, step, _Late(error)))
        self._last_full = max(step, self._last_full)

    def is_due(self, step: int) -> bool:
        """Whether a step has to be full."""
        if step not in self._due:
            self._due[step] = self._decide(step)
        return self._due[step]

    def _decide(self, step: int) -> bool:
        if step - self._last_full >= self._schedule.interval:
            return True
        known = [error for error in self._errors if error[1] <= step - 2]
        if not known:
            return True
        start, end, error = known[-1]
        spanned = sum(self._distance(number) for number in range(start + 1, end + 1))
        # The step's own distance is not known yet; the last one is used for it.
        moved = [self._distance(min(number, step - 1)) for number in range(self._last_full + 1, step + 1)]
        return error.read() * sum(moved) > self._schedule.threshold * spanned

    def _distance(self, step: int) -> float:
        late = self._distances.get(step)
        return 0.0 if late is None else late.read()


class _Late:
    """A number that is being copied from the device."""

    def __init__(self, value: torch.Tensor | None) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._number: float | None = 0.0 if value is None else None
        if value is not None:
            self._value = value.detach().to("cpu", non_blocking=True)
            if value.is_cuda:
                self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._arrived.record()

    def read(self) -> float:
        if self._number is None:
            if self._arrived is not None:
                self._arrived.synchronize()
            self._number = float(self._value)
        return self._number


def relative_error(forecast: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The norm of the error divided by that of the truth, a scalar on the device; sums in float32."""
    return _norm(forecast - truth) / _norm(truth).clamp_min(torch.finfo(torch.float32).tiny)


def _norm(tensor: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float32)
    return norm
