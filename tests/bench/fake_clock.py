"""A clock instead of `DeepCache.bench.benchmark.timed`: no time passes, and no two runs take the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from DeepCache.bench.clock import Timing

# Seconds of it are exact in a result file.
TICK = 0.125


class FakeClock:
    """Runs, and says a number of seconds that no other run took.

    Args:
        stop_at: the run, from 1, in whose place Ctrl-C comes.
        only_first: whether a case runs but the first time, which is when it reports what it does.
    """

    _told = 0

    def __init__(self, stop_at: int | None = None, *, only_first: bool = False) -> None:
        self.stop_at = stop_at
        self.only_first = only_first
        self.ran: list[Any] = []
        self.seconds: list[float] = []

    def __call__(self, run: Callable[[], None], device: object) -> Timing:
        case: Any = run.__self__  # type: ignore[attr-defined]
        if len(self.ran) + 1 == self.stop_at:
            raise KeyboardInterrupt
        if not self.only_first or case not in self.ran:
            run()
        self.ran.append(case)
        FakeClock._told += 1
        self.seconds.append(TICK * FakeClock._told)
        return Timing(self.seconds[-1], None)

    @property
    def names(self) -> list[tuple[str, str]]:
        """Who ran, in order."""
        return [(one.method, one.variant.name if one.variant else f"{one.call.steps} steps") for one in self.ran]
