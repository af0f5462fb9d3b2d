"""Engines, which distribute batches of rows to workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from DeepCache.batch.record import BatchRecord
from DeepCache.batch.row import BatchRow


class Worker(Protocol):
    """Generates the images of rows."""

    facts: dict[str, Any]
    """What was loaded, as far as the images depend on it, as JSON values."""

    def generate(self, rows: Sequence[BatchRow]) -> list[BatchRecord]:
        """Writes the images of a batch of rows of the same size. A row that fails has a record with an error.

        Raises:
            OSError: an image cannot be written.
            RuntimeError: too many rows failed in a row.
        """


WorkerMaker = Callable[[dict[str, Any] | None], Worker]
"""Makes a worker from the `facts` that it must have, None for the first one. It can be pickled."""


class Engine(Protocol):
    """Runs batches on workers."""

    def start(self, make_worker: WorkerMaker, expected: dict[str, Any] | None) -> dict[str, Any]:
        """Prepares the workers and returns their `facts`.

        Raises:
            ValueError: the facts differ from the `expected` ones.
        """

    def draw(self, batches: Iterable[list[BatchRow]]) -> Iterator[list[BatchRecord]]:
        """Generates batches in any order and yields their records as they are finished. It takes only as many `batches`
        as it can start soon, and finishes all that it has taken.

        Raises:
            OSError: an image cannot be written.
            RuntimeError: a worker cannot continue.
        """

    def close(self) -> None:
        """Releases the workers, if there are any."""


class LocalEngine:
    """Runs a batch in this process, with one worker. See `Engine`."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._threads: int | None = None

    def start(self, make_worker: WorkerMaker, expected: dict[str, Any] | None) -> dict[str, Any]:
        import torch

        # Workers set the number of threads for the whole process.
        self._threads = torch.get_num_threads()
        self._worker = make_worker(expected)
        return self._worker.facts

    def draw(self, batches: Iterable[list[BatchRow]]) -> Iterator[list[BatchRecord]]:
        assert self._worker is not None
        yield from map(self._worker.generate, batches)

    def close(self) -> None:
        self._worker = None
        if self._threads is not None:
            import torch

            torch.set_num_threads(self._threads)
            self._threads = None
