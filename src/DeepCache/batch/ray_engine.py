"""Runs a batch on Ray, on this machine or on a cluster."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Any

from DeepCache.batch.engine import Worker, WorkerMaker
from DeepCache.batch.record import BatchRecord
from DeepCache.batch.row import BatchRow

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

# Batches per worker in flight: the one that it generates, and the next one.
_IN_FLIGHT = 2
# Ray Data keeps about 4 KiB of metadata per batch while a pipeline runs. After this many batches per worker the
# pipeline is restarted: at one second per batch, every half hour.
_BATCHES_OF_A_WORKER = 2_000
# Records pass through Ray's shared memory, images do not.
_SHARED_MEMORY = 256 * 2**20


class RayEngine:
    """Runs a batch on a pool of Ray actors with one worker each, through Ray Data. See `Engine`.

    If Ray already runs in this process, it is used and left running.

    Args:
        workers: the number of workers; by default as many as fit on the GPUs, or else the CPUs.
        most_workers: the number of workers to grow to as a cluster grows; `workers` by default.
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
        self._make_worker: WorkerMaker | None = None
        self._facts: dict[str, Any] = {}
        self._started = False

    def start(self, make_worker: WorkerMaker, expected: dict[str, Any] | None) -> dict[str, Any]:
        import ray

        self._connect()
        self._fit()
        self._make_worker = make_worker
        # Not in this process, whose machine may have neither the device nor the memory for the model.
        look = ray.remote(num_cpus=self._cpus, num_gpus=self._gpus or 0, max_calls=1)(_facts_of)
        try:
            self._facts = ray.get(look.remote(make_worker, expected))
        except ray.exceptions.RayTaskError as error:
            raise _error_of_kind(_kind(error.cause), str(error.cause)) from None
        except ray.exceptions.RayError as error:
            raise _cannot_continue(error) from error
        return self._facts

    def draw(self, batches: Iterable[list[BatchRow]]) -> Iterator[list[BatchRecord]]:
        batches = iter(batches)
        most = _BATCHES_OF_A_WORKER * (self._most_workers or 1)
        for first in batches:
            yield from self._run_pipeline(chain([first], islice(batches, most - 1)))

    def _run_pipeline(self, batches: Iterable[list[BatchRow]]) -> Iterator[list[BatchRecord]]:
        import ray

        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        feed: Any = ray.remote(num_cpus=0, label_selector=here)(_Feed).remote()
        numbered = enumerate(batches)
        in_flight: set[int] = set()

        def send(most: int) -> None:
            some = {number: [row.to_json() for row in batch] for number, batch in islice(numbered, most)}
            in_flight.update(some)
            # One call at a time: an asynchronous actor may execute calls out of order.
            ray.get(feed.put.remote(some))
            if len(some) < most:
                feed.close.remote()

        failure: Exception | None = None
        try:
            send(_IN_FLIGHT * (self._most_workers or 1) + 1)
            for answer in self._answers(feed, here):
                # Ray repeats a batch if the process with its result has died.
                if answer["number"] not in in_flight:
                    continue
                in_flight.remove(answer["number"])
                feed.forget.remote(answer["number"])
                if answer["error"]:
                    failure = _error_of_kind(answer["error_kind"], answer["error"])
                    feed.close.remote()
                else:
                    yield [BatchRecord(**values) for values in answer["records"]]
                if failure is None:
                    send(1)
        except ray.exceptions.RayError as error:
            raise _cannot_continue(error) from error
        if failure is not None:
            raise failure

    def close(self) -> None:
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

    def _answers(self, feed: Any, here: dict[str, str]) -> Iterator[dict[str, Any]]:
        import ray.data
        from ray.data import ActorPoolStrategy, DataContext

        # Its import sets a log level.
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        before = DataContext.get_current()
        context = before.copy()
        # A batch is returned as soon as it is finished, instead of several at once.
        context.target_max_block_size = 1
        context.enable_progress_bars = False
        DataContext._set_current(context)
        try:
            rows: Dataset = ray.data.read_datasource(
                _fed_rows(feed), override_num_blocks=1, num_cpus=0, label_selector=here
            )
            answers = rows.map_batches(
                _RayWorker,
                fn_constructor_args=(self._make_worker, self._facts),
                batch_size=1,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(
                    min_size=self._workers, max_size=self._most_workers, max_tasks_in_flight_per_actor=_IN_FLIGHT
                ),
                num_cpus=self._cpus,
                num_gpus=self._gpus,
            )
            block: Any
            for block in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                yield from (json.loads(text) for text in block.column("answer").to_pylist())
        finally:
            DataContext._set_current(before)


class _Feed:
    """Passes batches from this process to Ray Data's source, which requests the next one when it has room."""

    def __init__(self) -> None:
        self._batches: dict[int, list[str]] = {}
        self._given = 0
        self._closed = False
        self._changed = asyncio.Condition()

    async def put(self, batches: dict[int, list[str]]) -> None:
        async with self._changed:
            self._batches |= batches
            self._given += len(batches)
            self._changed.notify_all()

    async def forget(self, number: int) -> None:
        self._batches.pop(number, None)

    async def close(self) -> None:
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def take(self, number: int) -> list[str] | None:
        """Waits for the batch of this number; None if there is none. A source that Ray restarts requests all batches
        again; those that are finished are empty."""
        async with self._changed:
            await self._changed.wait_for(lambda: number < self._given or self._closed)
            return self._batches.get(number, []) if number < self._given else None


class _RayWorker:
    """The worker of one actor, made with the first batch, so that its errors are returned like others."""

    def __init__(self, make_worker: WorkerMaker, facts: dict[str, Any]) -> None:
        self._make_worker = make_worker
        self._facts = facts
        self._worker: Worker | None = None

    def __call__(self, block: pa.Table) -> pa.Table:
        import pyarrow as pa

        ((number, texts),) = ((row["number"], row["rows"]) for row in block.to_pylist())
        answer: dict[str, Any] = {"number": number, "error": "", "error_kind": "", "records": []}
        try:
            if self._worker is None:
                self._worker = self._make_worker(self._facts)
            records = self._worker.generate([BatchRow.from_json(text) for text in texts])
            answer["records"] = [vars(record) for record in records]
        # An error that reaches Ray Data ends the job at once, with the batches in flight of other workers.
        except Exception as error:
            answer |= {"error": str(error) or type(error).__name__, "error_kind": _kind(error)}
        return pa.table({"answer": [json.dumps(answer)]})


def _facts_of(make_worker: WorkerMaker, expected: dict[str, Any] | None) -> dict[str, Any]:
    return make_worker(expected).facts


def _fed_rows(feed: Any) -> Any:
    """The batches of a feed as a data source with one row per batch."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    def read() -> Iterator[Any]:
        import pyarrow as pa
        import ray

        schema = pa.schema([("number", pa.int64()), ("rows", pa.list_(pa.string()))])
        for number in count():
            rows = ray.get(feed.take.remote(number))
            if rows is None:
                return
            yield pa.table({"number": [number], "rows": [rows]}, schema=schema)

    class FedRows(Datasource):
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(
            self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
        ) -> list[ReadTask]:
            return [ReadTask(read, BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None))]

    return FedRows()  # type: ignore[no-untyped-call]


# Errors that keep their type on the way from a worker; the others become a RuntimeError.
_KINDS = (ValueError, TypeError, MemoryError, ImportError, OSError)


def _kind(error: BaseException) -> str:
    return next((kind.__name__ for kind in _KINDS if isinstance(error, kind)), RuntimeError.__name__)


def _error_of_kind(kind: str, message: str) -> Exception:
    kinds: dict[str, type[Exception]] = {each.__name__: each for each in _KINDS}
    return kinds.get(kind, RuntimeError)(message)


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
