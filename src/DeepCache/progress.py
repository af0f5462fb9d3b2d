"""How far a long piece of work is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Work", "WorkProgress"]


@dataclass(frozen=True)
class WorkProgress:
    """How far the work is.

    Args:
        stage: what is being done.
        done: the work done, in any unit.
        total: all the work, as far as it can be told.
    """

    stage: str
    done: float
    total: float


@dataclass
class Work:
    """Keeps count of the work and tells of it.

    Args:
        total: all the work, as far as it can be told.
        tell: called whenever more is done.
    """

    total: float
    tell: Callable[[WorkProgress], None]
    stage: str = ""
    done: float = 0.0

    def add(self, work: float) -> None:
        """That much more is done."""
        self.done += work
        self.tell(WorkProgress(self.stage, self.done, max(self.total, self.done)))

    def end(self) -> None:
        """All is done, however much it was."""
        self.total = self.done
        self.add(0.0)

    def begin(self, stage: str) -> None:
        """From now on, this is being done."""
        self.stage = stage
        self.add(0.0)
