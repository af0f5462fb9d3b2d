"""Faster Diffusion (NeurIPS 2024, arXiv 2312.09608; hutaiHang/Faster-Diffusion)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from benchmarks.peers.peer import Call, Outputs

__all__ = ["FasterDiffusion", "every", "key_steps"]


class FasterDiffusion:
    """Runs the encoder at key steps only; between them the decoder runs on the skip connections of the last one.

    The encoder is `conv_in`, the down blocks and the mid block; the decoder sees the time of its own step.

    Published for 50 steps: key steps 0, 1, 2, 3, 5, 10, 15, 25, 35 (`key_steps`), or every n-th (`every`).

    What differs: the published noise injection (0.003 of the first latents, late in the run) is left out, as it moves
    images away from those without the rule on purpose. That the decoders between two key steps may run in one batch
    saves time and no multiply-accumulates.

    Args:
        is_key: whether a step is a key step, by its number and the number of steps; step 0 is one.
    """

    def __init__(self, is_key: Callable[[int, int], bool]) -> None:
        self._is_key = is_key
        self._encoder: Outputs | None = None

    def predict(self, call: Call) -> Tensor:
        unet = call.unet
        if self._encoder is None:
            self._encoder = Outputs([unet.conv_in, *unet.down_blocks, unet.mid_block])
        if self._is_key(call.number, call.steps):
            with self._encoder.kept():
                return call.full()
        with self._encoder.repeated():
            return call.part("decoder", call.run)


def every(interval: int) -> Callable[[int, int], bool]:
    """Every `interval`-th step is a key step."""
    return lambda number, steps: number % interval == 0


def key_steps(number: int, steps: int) -> bool:
    """The published key steps of 50, at the same places of a run of another length."""
    return number in {round(step * steps / 50) for step in (0, 1, 2, 3, 5, 10, 15, 25, 35)}
