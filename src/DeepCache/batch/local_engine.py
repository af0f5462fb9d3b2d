"""Draws a batch in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from DeepCache.batch.record import BatchRecord
from DeepCache.batch.row import BatchRow
from DeepCache.batch.worker import Worker, WorkerMaker

__all__ = ["LocalEngine"]


class LocalEngine:
    """Draws a batch in this process, with one worker. See `Engine`."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._threads: int | None = None

    def start(self, make_worker: WorkerMaker, expected: dict[str, Any] | None) -> dict[str, Any]:
        import torch

        # A worker sets it for the whole process, which goes on after it.
        self._threads = torch.get_num_threads()
        self._worker = make_worker(expected)
        return self._worker.facts

    def draw(self, batches: Iterable[list[BatchRow]]) -> Iterator[list[BatchRecord]]:
        assert self._worker is not None
        for batch in batches:
            yield self._worker.draw(batch)

    def close(self) -> None:
        self._worker = None
        if self._threads is not None:
            import torch

            torch.set_num_threads(self._threads)
            self._threads = None
