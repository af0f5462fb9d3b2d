"""What the last trajectory did and what it cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from DeepCache.engine.branches import SkipBranch
from DeepCache.engine.cost import count_costs, on_meta

__all__ = ["TrajectoryRecord", "TrajectoryStats"]


@dataclass(frozen=True)
class TrajectoryStats:
    """What the last trajectory did.

    Args:
        pattern: one character a step, `F` for a full step, `.` for a shallow one; a step of several U-Net calls is
            full if any of them was.
        full_steps: number of full steps.
        shallow_steps: number of shallow steps.
        bytes_kept: the most that was kept of deep features at any one time, in bytes.
        mac_share: multiply-accumulates spent in the U-Net as a share of what it takes without DeepCache, 0 to 1; None
            before the first trajectory, or where they cannot be counted.
        uncounted: why `mac_share` could not be counted, else an empty string.
    """

    pattern: str
    full_steps: int
    shallow_steps: int
    bytes_kept: int
    mac_share: float | None
    uncounted: str = ""

    def __str__(self) -> str:
        if not self.pattern:
            return "no trajectory yet"
        share = f"{self.mac_share:.1%}" if self.mac_share is not None else f"not counted ({self.uncounted})"
        return (
            f"{self.pattern}\n"
            f"{self.full_steps} full and {self.shallow_steps} shallow steps, "
            f"{self.bytes_kept / 2**20:.2f} MiB kept, "
            f"multiply-accumulates of the U-Net: {share}"
        )


class TrajectoryRecord:
    """Notes of a running trajectory: a few dictionary operations a call, and no reference to any of its tensors."""

    def __init__(self, branch: SkipBranch) -> None:
        self._branch = branch
        self._pattern: list[str] = []
        self._calls: Counter[tuple[torch.Size, bool]] = Counter()
        self._examples: dict[torch.Size, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._bytes_kept = 0
        self._mac_share: tuple[int, float | None, str] | None = None
        self._uncounted = ""

    def note_call(
        self, slot: int, full: bool, sample: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if slot == 0:
            self._pattern.append("F" if full else ".")
        elif full:
            self._pattern[-1] = "F"
        self._calls[sample.shape, full] += 1
        if sample.shape not in self._examples:
            self._examples[sample.shape] = (on_meta(args), on_meta(kwargs))

    def note_attention(self) -> None:
        self._uncounted = "deep attention layers that the pipeline listens to ran on shallow steps too"

    def note_bytes(self, kept: int) -> None:
        self._bytes_kept = max(self._bytes_kept, kept)

    def stats(self, unet: nn.Module) -> TrajectoryStats:
        pattern = "".join(self._pattern)
        share, reason = self._count(unet) if pattern else (None, "")
        full = pattern.count("F")
        return TrajectoryStats(pattern, full, len(pattern) - full, self._bytes_kept, share, reason)

    def _count(self, unet: nn.Module) -> tuple[float | None, str]:
        """The share of multiply-accumulates, counted when it is asked for and not while a picture is made."""
        if self._uncounted:
            return None, self._uncounted
        calls = self._calls.total()
        if self._mac_share is None or self._mac_share[0] != calls:
            try:
                self._mac_share = (calls, self._share(unet), "")
            # A third party's U-Net may do anything on the meta device, and figures must not cost a person the picture.
            except Exception as error:
                self._mac_share = (calls, None, f"{type(error).__name__}: {error}")
        return self._mac_share[1:]

    def _share(self, unet: nn.Module) -> float:
        spent, whole = 0, 0
        for shape, (args, kwargs) in self._examples.items():
            costs = count_costs(unet, args, kwargs, [self._branch])
            full, shallow = self._calls[shape, True], self._calls[shape, False]
            spent += full * costs.full + shallow * costs.shallow[self._branch.number]
            whole += (full + shallow) * costs.full
        return spent / whole
