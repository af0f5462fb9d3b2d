"""SADA, stability-guided adaptive diffusion acceleration (ICML 2025, arXiv 2507.17135; Ting-Justin-Jiang/sada-icml)."""

from __future__ import annotations

from torch import Tensor

from benchmarks.peers.peer import Call

__all__ = ["Sada"]


class Sada:
    """Skips a step where the solver's error and the curvature of the path point in opposite directions.

    y is the slope dx/dt of the probability-flow ODE. From the last three slopes follows what the input of this step
    should be, `x' = x(n-1) - h * (5 y(n-1) + 5 y(n-2) - 4 y(n-3)) / 6`; the step is skipped where the inner product of
    `x - x'` and the second difference of y is negative. A skipped step re-uses the last noise prediction and takes the
    clean latents from x' instead of x, which as a noise prediction is `e + (x - x') / sigma`. A full step follows.

    Late in the run every `lagrange`-th step, counted from the start of skipping, is full, and in between the clean
    latents are extrapolated by the polynomial through those of the last four such steps.

    Published defaults, of 50 steps: skipping from step 10 to 47, Lagrange from step 24 on with every 4th step full and
    4 points.

    What differs: token pruning inside attention is left out, as these images have few tokens. Published for DPM++ and
    Euler; here the slopes come from the betas, so that any scheduler will do. One decision a batch.
    """

    def __init__(self, lagrange: int | None = 4, start: float = 10 / 50, end: float = 47 / 50) -> None:
        self._lagrange, self._start, self._end = lagrange, start, end
        self._late = 24 / 50
        self._points = 4
        self._was_full = True
        self._slopes: list[Tensor] = []
        self._before: Tensor | None = None
        self._timestep = 0.0
        self._prediction: Tensor | None = None
        self._clean: list[tuple[float, Tensor]] = []

    def predict(self, call: Call) -> Tensor:
        x = call.x[: len(call.x) // call.halves]
        prediction = self._skipped(call, x)
        self._was_full = prediction is None
        prediction = call.full() if prediction is None else call.skip(prediction)
        beta = float(call.scheduler.betas[round(call.timestep)])
        slope = beta / 2 * (call.guided(prediction) / call.sigma - x)
        self._slopes = [*self._slopes[-2:], slope]
        self._before, self._timestep, self._prediction = x, call.timestep, prediction
        if self._is_node(call):
            self._clean = [*self._clean[1 - self._points :], (call.timestep, call.clean(prediction))]
        return prediction

    def _skipped(self, call: Call, x: Tensor) -> Tensor | None:
        """The prediction of a step that is skipped, None for a full one."""
        # The decision on a step belongs to the step before it.
        inside = self._start * call.steps <= call.number - 1 < self._end * call.steps
        if not inside or len(self._slopes) < 3 or self._before is None or self._prediction is None:
            return None
        if call.number > self._late * call.steps:
            if self._is_node(call):
                return None
            if len(self._clean) == self._points:
                return self._from_clean(call)
        if not self._was_full:
            return None
        third, second, first = self._slopes
        expected = self._before - (self._timestep - call.timestep) * (5 * first + 5 * second - 4 * third) / 6
        error = x - expected
        if (error * (first - 2 * second + third)).sum() >= 0:
            return None
        return self._prediction + error.repeat(call.halves, 1, 1, 1) / call.sigma

    def _is_node(self, call: Call) -> bool:
        """Whether the clean latents of this step are kept for the polynomial."""
        since = call.number - round(self._start * call.steps)
        return self._lagrange is not None and since >= 0 and since % self._lagrange == 0

    def _from_clean(self, call: Call) -> Tensor:
        clean = 0
        for time, value in self._clean:
            weight = 1.0
            for other, _ in self._clean:
                if other != time:
                    weight *= (call.timestep - other) / (time - other)
            clean = clean + weight * value
        return (call.x - call.alpha * clean.repeat(call.halves, 1, 1, 1)) / call.sigma
