"""Shared by the training stages: budgets of steps or time, logs, checkpoints and averages."""

from __future__ import annotations

import csv
import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn
from transformers import PreTrainedModel


def progress_bar() -> Progress:
    """A progress bar that also shows the latest loss."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )


def parse_deadline(text: str) -> float:
    """The next time the clock shows HH:MM, in seconds since the epoch."""
    hour, minute = (int(part) for part in text.split(":"))
    moment = datetime.now().replace(hour=hour, minute=minute, second=0, microsecond=0)
    if moment < datetime.now() - timedelta(hours=12):
        moment += timedelta(days=1)
    return moment.timestamp()


@dataclass
class Budget:
    """How much of a stage is done: by steps or, where a deadline is given, by the clock.

    With a deadline the fraction grows evenly in time from where the stage (re)started, so the
    learning rate lands at zero when the deadline comes.
    """

    steps: int
    deadline: float | None = None
    start_fraction: float = 0.0
    start_time: float = field(default_factory=time.time)

    def fraction(self, step: int) -> float:
        """The share of the stage that is done, from 0 to 1."""
        if self.deadline is None:
            return min(1.0, step / self.steps)
        span = max(1e-6, self.deadline - self.start_time)
        done = (time.time() - self.start_time) / span
        return min(1.0, self.start_fraction + (1 - self.start_fraction) * done)


def cosine_rate(peak: float, fraction: float, step: int, warm_up: int) -> float:
    """A learning rate that warms up by steps and falls as a half cosine to a hundredth."""
    floor = 0.01
    shape = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fraction))
    return peak * shape * min(1.0, (step + 1) / warm_up)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of the optimizer this learning rate, times the group's own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


class CsvLog:
    """Rows of stage, step, seconds, loss and learning rate, appended to one file."""

    columns = ("stage", "step", "seconds", "loss", "rate")

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            self._append(self.columns)

    def add(self, stage: str, step: int, seconds: float, loss: float, rate: float) -> None:
        """Append one row."""
        self._append((stage, step, f"{seconds:.1f}", f"{loss:.6f}", f"{rate:.3e}"))

    def _append(self, row: tuple[object, ...]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(row)


class Average:
    """An exponential moving average of a module's weights."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in _state(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the module; the first steps count more."""
        decay = min(self.decay, (1 + step) / (10 + step))
        values = _state(module)
        names = [name for name, value in values.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.weights[name] for name in names], [values[name] for name in names], 1 - decay)

    def copy_to(self, module: nn.Module) -> None:
        """Give the module the averaged weights."""
        module.load_state_dict(self.weights)


def _state(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.state_dict())


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint in one move, so that a stop never leaves half a file."""
    partial = path.with_suffix(".partial")
    torch.save(dict(state), partial)
    os.replace(partial, path)


def save_model(model: ModelMixin | PreTrainedModel, folder: Path) -> None:
    """Save a finished model; its folder appears whole or not at all."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    partial.rename(folder)


def load_state(path: Path) -> dict[str, Any] | None:
    """The checkpoint, or None where there is none; only tensors and plain values are read."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return state
