"""Statistics of a denoising run: its steps and its cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from DeepCache.engine.cost import count_costs, on_meta
from DeepCache.engine.layouts.layout import Args, Kwargs
from DeepCache.engine.planner import Decision
from DeepCache.engine.trajectory import StepInfo
from DeepCache.schedule import Step, pattern_of


@dataclass(frozen=True)
class TrajectoryStats:
    """Statistics of the last denoising run.

    Args:
        pattern: one character per step: `F` for a full step, `-` for a skipped one, `.` for a shallow one, or the
            number of its branch if several are used. A step of several U-Net calls is full if any of them was.
        full_steps: number of full steps.
        shallow_steps: number of shallow steps.
        bytes_kept: the most memory that stored tensors took at any one time, in bytes.
        mac_share: multiply-accumulates of the U-Net as a share of those without DeepCache, 0 to 1; None before the
            first run, or if they cannot be counted.
        uncounted: why `mac_share` could not be counted, else an empty string.
        halved_steps: number of steps that ran half of a guided batch (guidance reuse).
        skipped_steps: number of steps at which no layer of the U-Net ran.
        reasons: the steps that were full although not scheduled, each with its reason. A call through
            which a gradient is taken is not a step, and is listed with the step before it.
    """

    pattern: str
    full_steps: int
    shallow_steps: int
    bytes_kept: int
    mac_share: float | None
    uncounted: str = ""
    halved_steps: int = 0
    skipped_steps: int = 0
    reasons: tuple[tuple[int, str], ...] = ()

    def __str__(self) -> str:
        if not self.pattern:
            return f"no trajectory yet{self._unscheduled()}"
        share = f"{self.mac_share:.1%}" if self.mac_share is not None else f"not counted ({self.uncounted})"
        halved = f" ({self.halved_steps} with guidance reuse)" if self.halved_steps else ""
        kinds = f"{self.full_steps} full and {self.shallow_steps} shallow steps"
        if self.skipped_steps:
            kinds = f"{self.full_steps} full, {self.shallow_steps} shallow and {self.skipped_steps} skipped steps"
        return (
            f"{self.pattern}\n{kinds}{halved}, {self.bytes_kept / 2**20:.2f} MiB kept, "
            f"multiply-accumulates of the U-Net: {share}{self._unscheduled()}"
        )

    def _unscheduled(self) -> str:
        steps: dict[str, list[str]] = {}
        for step, reason in self.reasons:
            steps.setdefault(reason, []).append(str(step))
        return "".join(
            f"\nfull though not scheduled, {reason}: step {', '.join(numbers)}" for reason, numbers in steps.items()
        )


class RunRecord:
    """The record of a run in progress: a few dictionary operations per call, and no reference to any of its tensors."""

    def __init__(self, branches: tuple[int, ...]) -> None:
        self._branches = branches
        self._steps: list[Step] = []
        # By the shapes of all arguments: prompts of two lengths cost differently at the same size of an image.
        self._calls: Counter[tuple[Hashable, Step]] = Counter()
        self._examples: dict[Hashable, tuple[Args, Kwargs]] = {}
        self._bytes_kept = 0
        self._mac_share: tuple[int, float] | None = None
        self._uncounted = ""
        # Each once, in order: a training loop makes any number of calls at a step.
        self._reasons: dict[tuple[int, str], None] = {}

    def note_call(self, info: StepInfo, decision: Decision, args: Args, kwargs: Kwargs) -> None:
        """Records a call that is a step of the run."""
        step = decision.step
        if info.slot == 0:
            self._steps.append(step)
        elif step.full:
            self._steps[-1] = step
        if decision.reason:
            self._reasons[info.step, decision.reason] = None
        self._count_call(step, args, kwargs)

    def note_differentiated(self, reason: str, args: Args, kwargs: Kwargs) -> None:
        """Records a call that is not a step of the run, since a gradient may be taken through it."""
        self._reasons[max(len(self._steps) - 1, 0), reason] = None
        self._count_call(Step(True), args, kwargs)

    def _count_call(self, step: Step, args: Args, kwargs: Kwargs) -> None:
        shapes = _shapes((args, kwargs))
        self._calls[shapes, step] += 1
        if shapes not in self._examples:
            self._examples[shapes] = (on_meta(args), on_meta(kwargs))

    def note_attention(self) -> None:
        self._uncounted = "deep attention layers that the pipeline reads ran on shallow steps too"

    def note_bytes(self, kept: int) -> None:
        self._bytes_kept = max(self._bytes_kept, kept)

    @property
    def pattern(self) -> str:
        return pattern_of(self._steps)

    def stats(self, unet: nn.Module) -> TrajectoryStats:
        share, reason = self._count(unet) if self._steps else (None, "")
        full = sum(step.full for step in self._steps)
        skipped = sum(step.skipped for step in self._steps)
        halved = sum(step.guidance_reuse for step in self._steps)
        shallow, reasons = len(self._steps) - full - skipped, tuple(self._reasons)
        return TrajectoryStats(self.pattern, full, shallow, self._bytes_kept, share, reason, halved, skipped, reasons)

    def _count(self, unet: nn.Module) -> tuple[float | None, str]:
        """The share of multiply-accumulates, counted on request and not while an image is generated."""
        if self._uncounted:
            return None, self._uncounted
        calls = self._calls.total()
        if self._mac_share is None or self._mac_share[0] != calls:
            try:
                self._mac_share = (calls, self._share(unet))
            # Any U-Net may fail on the meta device, and statistics must not cost a user the image. In the middle of a
            # call counting may fail where it does not later.
            except Exception as error:
                return None, f"{type(error).__name__}: {error}"
        return self._mac_share[1], ""

    def _share(self, unet: nn.Module) -> float:
        spent, whole = 0.0, 0
        for shapes, (args, kwargs) in list(self._examples.items()):
            costs = count_costs(unet, args, kwargs, self._branches)
            for (called, step), times in list(self._calls.items()):
                if called == shapes:
                    spent += times * step.cost(costs) * costs.full
                    whole += times * costs.full
        return spent / whole


def _shapes(arguments: Any) -> Hashable:
    """The shapes of all tensors among the arguments of a call, with their places."""
    if isinstance(arguments, torch.Tensor):
        return arguments.shape
    if isinstance(arguments, dict):
        return tuple((name, _shapes(value)) for name, value in arguments.items() if value is not None)
    if isinstance(arguments, (list, tuple)):
        return tuple(map(_shapes, arguments))
    return None
