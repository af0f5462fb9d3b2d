"""The cache_diffusion example of NVIDIA's Model Optimizer (examples/diffusers/cache_diffusion)."""

from __future__ import annotations

from torch import Tensor

from benchmarks.peers.peer import Call, Outputs

__all__ = ["CacheDiffusion"]


class CacheDiffusion:
    """At every second step all blocks of the U-Net but the last up block return what they returned at the step before.

    Published for SDXL: every second step, all blocks but `up_blocks.2`, which is its last.

    What differs: the last up block of any U-Net stands for `up_blocks.2`.
    """

    def __init__(self, interval: int = 2) -> None:
        self._interval = interval
        self._blocks: Outputs | None = None

    def predict(self, call: Call) -> Tensor:
        unet = call.unet
        if self._blocks is None:
            self._blocks = Outputs([*unet.down_blocks, unet.mid_block, *unet.up_blocks[:-1]])
        if call.number % self._interval == 0:
            with self._blocks.kept():
                return call.full()
        with self._blocks.repeated():
            return call.part("last up block", call.run)
