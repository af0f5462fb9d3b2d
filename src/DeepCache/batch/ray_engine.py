"""Runs a batch on Ray, on this machine or on a cluster."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from DeepCache.batch.engine import Worker, WorkerMaker
from DeepCache.batch.record import BatchRecord
from DeepCache.batch.row import BatchRow

# Batches per worker in flight: the one that it generates, and the next one.
_IN_FLIGHT = 2
# Processes per worker that may die before any of them finishes a batch.
_MOST_DEATHS = 10
# Records pass through Ray's shared memory, images do not.
_SHARED_MEMORY = 256 * 2**20
# Errors that keep their type on the way from a worker; the others become a RuntimeError.
_KINDS = (ValueError, TypeError, MemoryError, ImportError, OSError)


class RayEngine:
    """Runs a batch on a pool of Ray actors with one worker each. See `Engine`.

    If Ray already runs in this process, it is used and left running.

    Args:
        workers: the number of workers; by default as many as fit on the GPUs, or else the CPUs.
        most_workers: the number of workers on a cluster that grows; `workers` by default.
        cpus: CPUs per worker, the number of its threads on the CPU.
        gpus: GPUs per worker, such as 1 or 0.5; by default 1 if there are any, else 0.
        address: the cluster as `host:port`, or `auto` on one of its machines; by default the environment variable
            `RAY_ADDRESS`, or else Ray is started on this machine.

    Raises:
        ValueError: a value is out of its range.
        ImportError: Ray is not installed.
    """

    def __init__(
        self,
        workers: int | None = None,
        most_workers: int | None = None,
        cpus: int = 1,
        gpus: float | None = None,
        address: str | None = None,
    ) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be >= 1, got {workers}")
        if most_workers is not None and most_workers < (workers or 1):
            raise ValueError(f"most_workers must be >= workers ({workers or 1}), got {most_workers}")
        if gpus is not None and gpus < 0:
            raise ValueError(f"the GPUs per worker must be >= 0, got {gpus}")
        if address is not None and address.startswith("ray://"):
            raise ValueError(
                f"the address must not be that of a Ray Client, got {address!r}. Run this on a machine of the cluster "
                "with the address auto, or submit it with `ray job submit`."
            )
        _import_ray()
        self._workers, self._most_workers, self._cpus, self._gpus = workers, most_workers, cpus, gpus
        # `ray job submit` sets the variable.
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._pool: _Pool | None = None
        self._started = False

    def start(self, make_worker: WorkerMaker, expected: dict[str, Any] | None) -> dict[str, Any]:
        import ray

        self._connect()
        self._fit()
        new_actor: Callable[[], Any] = ray.remote(num_cpus=self._cpus, num_gpus=self._gpus or 0)(_RayWorker).remote
        # Not in this process, whose machine may have neither the device nor the memory for the model.
        actor = new_actor()
        try:
            facts: dict[str, Any] = ray.get(actor.load.remote(make_worker, expected))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise _cannot_continue(error) from error
        finally:
            ray.kill(actor)
        self._pool = _Pool(new_actor, make_worker, facts, self._most_workers or 1)
        return facts

    def draw(self, batches: Iterable[list[BatchRow]]) -> Iterator[list[BatchRecord]]:
        import ray

        assert self._pool is not None
        try:
            yield from self._pool.run(batches)
        except ray.exceptions.RayError as error:
            raise _cannot_continue(error) from error

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        if self._started:
            import ray

            ray.shutdown()
            self._started = False

    def _connect(self) -> None:
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)
        if ray.is_initialized():
            return
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self._address is None:
            # A separate instance, even if another one runs on this machine.
            options |= {"address": "local", "include_dashboard": False, "object_store_memory": _SHARED_MEMORY}
            options["num_cpus"] = max(os.cpu_count() or 1, (self._workers or 1) * self._cpus)
        else:
            options["address"] = self._address
        try:
            with _silent_stderr(), _sigterm_kept():
                ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = f"reach the Ray cluster at {self._address!r}" if self._address else "start Ray"
            # Ray's message does not mention a missing token.
            hint = ". Set RAY_AUTH_MODE=token if the cluster requires a token." if self._address else ""
            raise OSError(f"cannot {where}: {' '.join(str(error).split())}{hint}") from error
        self._started = True

    def _fit(self) -> None:
        """Sets the defaults from the resources of the cluster."""
        import ray

        has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = has.get("GPU", 0)
        if self._gpus is None:
            self._gpus = 1.0 if gpus >= 1 else 0.0
        if self._workers is None:
            self._workers = max(1, int(gpus / self._gpus if self._gpus else has.get("CPU", 1) / self._cpus))
        needed = self._workers * self._gpus
        if self._gpus and self._address is None and needed > gpus:
            raise ValueError(
                f"{self._workers} workers with {self._gpus:g} GPUs each need {needed:g} GPUs, this machine has {gpus:g}"
            )
        self._most_workers = max(self._most_workers or 0, self._workers)


class _RayWorker:
    """The process of a worker."""

    _worker: Worker

    def load(self, make_worker: WorkerMaker, expected: dict[str, Any] | None) -> dict[str, Any]:
        with _plain_errors():
            self._worker = make_worker(expected)
        return self._worker.facts

    def generate(self, rows: Sequence[BatchRow]) -> list[BatchRecord]:
        with _plain_errors():
            return self._worker.generate(rows)


class _Pool:
    """Actors and the batches in flight. An actor that dies is replaced, and its batches are repeated."""

    def __init__(
        self, new_actor: Callable[[], Any], make_worker: WorkerMaker, facts: dict[str, Any], size: int
    ) -> None:
        self._new_actor, self._make_worker, self._facts, self._size = new_actor, make_worker, facts, size
        self._actors: set[Any] = set()
        self._loaded: set[Any] = set()
        # The actor and the batch of each task; a task without a batch loads the model.
        self._tasks: dict[Any, tuple[Any, list[BatchRow] | None]] = {}
        self._batches: Iterator[list[BatchRow]] = iter(())
        self._waiting: deque[list[BatchRow]] = deque()
        self._failure: Exception | None = None
        self._deaths = 0

    def run(self, batches: Iterable[list[BatchRow]]) -> Iterator[list[BatchRecord]]:
        import ray

        self._batches = iter(batches)
        # No more actors than batches.
        self._waiting.extend(islice(self._batches, self._size))
        for _ in self._waiting:
            self._add_actor()
        while self._has_work():
            ((task,), _) = ray.wait(list(self._tasks), num_returns=1)
            actor, batch = self._tasks.pop(task)
            try:
                records = ray.get(task)
            except ray.exceptions.RayTaskError as error:
                # The batches in flight are finished first.
                self._failure = error.cause
            except ray.exceptions.RayError as error:
                self._replace(actor, batch, error)
            else:
                if batch is None:
                    self._loaded.add(actor)
                else:
                    self._deaths = 0
                    yield records
            self._send()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)

    def _has_work(self) -> bool:
        if any(batch is not None for _, batch in self._tasks.values()):
            return True
        batch = self._next_batch()
        if batch is not None:
            self._waiting.append(batch)
        return batch is not None

    def _next_batch(self) -> list[BatchRow] | None:
        if self._failure is not None:
            return None
        return self._waiting.popleft() if self._waiting else next(self._batches, None)

    def _send(self) -> None:
        in_flight = Counter(actor for actor, _ in self._tasks.values())
        for actor in self._loaded:
            for _ in range(_IN_FLIGHT - in_flight[actor]):
                batch = self._next_batch()
                if batch is None:
                    return
                self._tasks[actor.generate.remote(batch)] = actor, batch

    def _add_actor(self) -> None:
        actor = self._new_actor()
        self._actors.add(actor)
        self._tasks[actor.load.remote(self._make_worker, self._facts)] = actor, None

    def _replace(self, actor: Any, batch: list[BatchRow] | None, error: Exception) -> None:
        import ray

        if batch is not None:
            self._waiting.append(batch)
        if actor not in self._actors:  # it had another batch in flight
            return
        self._deaths += 1
        if self._deaths > _MOST_DEATHS * self._size:
            raise _cannot_continue(error) from error
        ray.kill(actor)
        self._actors.remove(actor)
        self._loaded.discard(actor)
        self._add_actor()


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Replaces errors by built-in ones, which other processes can unpickle."""
    try:
        yield
    except Exception as error:
        kind = next((kind for kind in _KINDS if isinstance(error, kind)), RuntimeError)
        raise kind(str(error) or type(error).__name__) from None


def _cannot_continue(error: Exception) -> RuntimeError:
    return RuntimeError(f"Ray cannot continue: {' '.join(str(error).split())}")


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discards what this process writes to stderr, where Ray's core reports its log level."""
    sys.stderr.flush()
    before = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keeps the handler of SIGTERM, which Ray replaces."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # Signals can be set in the main thread alone, and Ray does so there alone.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _import_ray() -> None:
    # For a Ray that is started here: no usage reports, no log messages, and no task events, which need ever more memory
    # and which only the dashboard shows.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise ImportError('the Ray engine requires Ray: pip install "DeepCache[ray]"') from error
