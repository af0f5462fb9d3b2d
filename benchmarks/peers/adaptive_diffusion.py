"""AdaptiveDiffusion (NeurIPS 2024, arXiv 2410.09873; UniModal4Reasoning/AdaptiveDiffusion)."""

from __future__ import annotations

from torch import Tensor

from benchmarks.peers.peer import Call

__all__ = ["AdaptiveDiffusion"]


class AdaptiveDiffusion:
    """Re-uses the prediction while the third-order difference of the latents is small beside their first-order one.

    With d(n) the norm of the change of the latents from step n - 1 to n, step n is skipped where
    `|(d(n) + d(n-2)) / 2 - d(n-1)| < threshold * d(n-1)`.

    Published defaults: threshold 0.01, at most 4 skipped steps in a row.

    What differs: one decision a batch, whose norms go over all its images. The paper writes the difference of vectors;
    taken so, no step of the bundled model at guidance 7.5 is below the published threshold, so it is taken of norms.
    """

    def __init__(self, threshold: float = 0.01, longest: int = 4) -> None:
        self._threshold, self._longest = threshold, longest
        self._latents: list[Tensor] = []
        self._in_a_row = 0
        self._prediction: Tensor | None = None

    def predict(self, call: Call) -> Tensor:
        self._latents = [*self._latents[-3:], call.latents]
        if self._prediction is not None and self._in_a_row < self._longest and self._steady():
            self._in_a_row += 1
            return call.skip(self._prediction)
        self._in_a_row = 0
        self._prediction = call.full()
        return self._prediction

    def _steady(self) -> bool:
        if len(self._latents) < 4:
            return False
        first, second, third = (
            float((after - before).norm()) for before, after in zip(self._latents, self._latents[1:], strict=False)
        )
        return abs((first + third) / 2 - second) < self._threshold * second
