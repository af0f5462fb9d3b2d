"""Progress of long work: tuning, ablations, benchmarks and profiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Work", "WorkProgress"]


@dataclass(frozen=True)
class WorkProgress:
    """How much of the work is done.

    Args:
        stage: the current stage.
        done: the work done, in any unit.
        total: an estimate of all the work.
    """

    stage: str
    done: float
    total: float


@dataclass
class Work:
    """Counts work and reports it.

    Args:
        total: an estimate of all the work.
        report: called after each change.
    """

    total: float
    report: Callable[[WorkProgress], None]
    stage: str = ""
    done: float = 0.0

    def begin(self, stage: str) -> None:
        """Starts a stage."""
        self.stage = stage
        self.add(0.0)

    def add(self, work: float) -> None:
        """Counts work as done."""
        self.done += work
        self.report(WorkProgress(self.stage, self.done, max(self.total, self.done)))

    def end(self) -> None:
        """Reports all work as done, even if it was less than estimated."""
        self.total = self.done
        self.add(0.0)
