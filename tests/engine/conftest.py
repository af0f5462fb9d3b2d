from __future__ import annotations

import pytest
from torch import nn


class Witness:
    """Records which calls of a U-Net ran its mid block, by hooks independent of DeepCache."""

    def __init__(self, unet: nn.Module) -> None:
        self._calls: list[str] = []
        unet.register_forward_pre_hook(lambda *_: self._calls.append("."), prepend=True)
        unet.mid_block.register_forward_hook(self._mid_block_ran)

    def take(self) -> str:
        """One character per call since the last `take`: `F` if the mid block ran, else `.`."""
        pattern = "".join(self._calls)
        self._calls.clear()
        return pattern

    def _mid_block_ran(self, *_: object) -> None:
        self._calls[-1] = "F"


@pytest.fixture
def witness() -> type[Witness]:
    return Witness
