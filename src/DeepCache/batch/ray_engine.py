"""Has a batch drawn by Ray: on this machine, or on a cluster."""

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

from DeepCache.batch.record import BatchRecord
from DeepCache.batch.row import BatchRow
from DeepCache.batch.worker import Worker, WorkerMaker

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

__all__ = ["RayEngine"]

# Batches in hand for every worker: the one that it draws, and one to go on with.
_IN_HAND = 2
# Ray Data keeps books of each batch, about 4 KiB, for as long as a pipeline runs. After so many for each worker the
# workers are made anew: with a second a batch, that is half an hour.
_BATCHES_OF_A_WORKER = 2_000
# Records pass through Ray's shared memory, and pictures do not.
_SHARED_MEMORY = 256 * 2**20


class RayEngine:
    """Has a batch drawn by a pool of Ray actors, one worker each, through Ray Data. See `Engine`.

    Where Ray runs in this process already, that is used, and left running.

    Args:
        workers: how many; by default as many as there are GPUs, or else CPUs, for.
        most_workers: where to grow to as a cluster grows; `workers` by default.
        cpus: CPUs for each worker, as many as it has threads on the CPU.
        gpus: GPUs for each worker, such as 1 or 0.5; by default 1 where there are any, else 0.
        address: of the cluster, `host:port`, or `auto` on a machine of the cluster; by default that in the environment
            variable `RAY_ADDRESS`, and a Ray that is started on this machine where there is none.

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
            raise ValueError(f"workers must be 1 or more, got {workers}")
        if most_workers is not None and most_workers < (workers or 1):
            raise ValueError(
                f"the most workers must be {workers or 1} or more, as many as the least, got {most_workers}"
            )
        if gpus is not None and gpus < 0:
            raise ValueError(f"GPUs for each worker must be 0 or more, got {gpus}")
        if address is not None and address.startswith("ray://"):
            raise ValueError(
                f"Ray Data works on a machine of the cluster, not through a Ray Client such as {address!r}: run this "
                "there with the address auto, or give it to `ray job submit`"
            )
        _import_ray()
        self._workers, self._most_workers, self._cpus, self._gpus = workers, most_workers, cpus, gpus
        # Ray's own way to be told, which `ray job submit` uses.
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._make_worker: WorkerMaker | None = None
        self._facts: dict[str, Any] = {}
        self._started = False

    def start(self, make_worker: WorkerMaker, expected: dict[str, Any] | None) -> dict[str, Any]:
        import ray

        self._connect()
        self._fit()
        self._make_worker = make_worker
        # Not here: this machine may have neither the device nor the memory for the model.
        look = ray.remote(num_cpus=self._cpus, num_gpus=self._gpus or 0, max_calls=1)(_facts_of)
        try:
            self._facts = ray.get(look.remote(make_worker, expected))
        except ray.exceptions.RayTaskError as error:
            raise _error_of_kind(_kind(error.cause), str(error.cause)) from None
        except ray.exceptions.RayError as error:
            raise _cannot_go_on(error) from error
        return self._facts

    def draw(self, batches: Iterable[list[BatchRow]]) -> Iterator[list[BatchRecord]]:
        batches = iter(batches)
        most = _BATCHES_OF_A_WORKER * (self._most_workers or 1)
        for first in batches:
            yield from self._draw_some(chain([first], islice(batches, most - 1)))

    def _draw_some(self, batches: Iterable[list[BatchRow]]) -> Iterator[list[BatchRecord]]:
        import ray

        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        feed: Any = ray.remote(num_cpus=0, label_selector=here)(_Feed).remote()
        numbered = enumerate(batches)
        in_hand: set[int] = set()

        def hand_out(most: int) -> None:
            some = {number: [row.to_json() for row in batch] for number, batch in islice(numbered, most)}
            in_hand.update(some)
            # One after another: an actor such as this may be given them in another order than they were sent.
            ray.get(feed.put.remote(some))
            if len(some) < most:
                feed.close.remote()

        trouble: Exception | None = None
        try:
            hand_out(_IN_HAND * (self._most_workers or 1) + 1)
            for answer in self._answers(feed, here):
                # Ray may do again what it did before, where the process that kept it is gone.
                if answer["number"] not in in_hand:
                    continue
                in_hand.remove(answer["number"])
                feed.forget.remote(answer["number"])
                if answer["error"]:
                    trouble = _error_of_kind(answer["error_kind"], answer["error"])
                    feed.close.remote()
                else:
                    yield [BatchRecord(**values) for values in answer["records"]]
                if trouble is None:
                    hand_out(1)
        except ray.exceptions.RayError as error:
            raise _cannot_go_on(error) from error
        if trouble is not None:
            raise trouble

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
            # One of its own, whatever else runs on this machine.
            options |= {"address": "local", "include_dashboard": False, "object_store_memory": _SHARED_MEMORY}
            options["num_cpus"] = max(os.cpu_count() or 1, (self._workers or 1) * self._cpus)
        else:
            options["address"] = self._address
        try:
            with _silent(), _sigterm_kept():
                ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = f"reach the Ray cluster at {self._address!r}" if self._address else "start Ray"
            # Ray says no more of it where the token is missing.
            hint = "; one that asks for a token takes RAY_AUTH_MODE=token here" if self._address else ""
            raise OSError(f"cannot {where}: {' '.join(str(error).split())}{hint}") from error
        self._started = True

    def _fit(self) -> None:
        """Fills in what was not asked for from what the cluster has."""
        import ray

        has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        if self._gpus is None:
            self._gpus = 1.0 if has.get("GPU", 0) >= 1 else 0.0
        if self._workers is None:
            fitting = has.get("GPU", 0) / self._gpus if self._gpus else has.get("CPU", 1) / self._cpus
            self._workers = max(1, int(fitting))
        if self._gpus and self._address is None and self._workers * self._gpus > has.get("GPU", 0):
            raise ValueError(
                f"{self._workers} workers with {self._gpus:g} GPUs each take {self._workers * self._gpus:g} GPUs, and "
                f"this machine has {has.get('GPU', 0):g}"
            )
        self._most_workers = max(self._most_workers or 0, self._workers)

    def _answers(self, feed: Any, here: dict[str, str]) -> Iterator[dict[str, Any]]:
        import ray.data
        from ray.data import ActorPoolStrategy, DataContext

        # At its import it sets itself a level of its own.
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        before = DataContext.get_current()
        context = before.copy()
        # A batch is handed on as soon as it is there, in place of many together.
        context.target_max_block_size = 1
        context.enable_progress_bars = False
        DataContext._set_current(context)
        try:
            rows: Dataset = ray.data.read_datasource(
                _fed_rows(feed), override_num_blocks=1, num_cpus=0, label_selector=here
            )
            answers = rows.map_batches(
                _Drawer,
                fn_constructor_args=(self._make_worker, self._facts),
                batch_size=1,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(
                    min_size=self._workers, max_size=self._most_workers, max_tasks_in_flight_per_actor=_IN_HAND
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
    """Passes batches from this process to Ray Data's source, which asks for the next whenever it has room."""

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
        """The batch of this number, once it is there; None once it is sure that there will be none. A source that
        Ray begins again asks for all of them again: of those that are drawn nothing is left."""
        async with self._changed:
            await self._changed.wait_for(lambda: number < self._given or self._closed)
            return self._batches.get(number, []) if number < self._given else None


class _Drawer:
    """The worker of one actor. It is made when it is first needed, so that what goes wrong there is an answer too."""

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
            records = self._worker.draw([BatchRow.from_json(text) for text in texts])
            answer["records"] = [vars(record) for record in records]
        # An error that Ray Data sees ends the job at once, and what the other workers have in hand with it.
        except Exception as error:
            answer |= {"error": str(error) or type(error).__name__, "error_kind": _kind(error)}
        return pa.table({"answer": [json.dumps(answer)]})


def _facts_of(make_worker: WorkerMaker, expected: dict[str, Any] | None) -> dict[str, Any]:
    return make_worker(expected).facts


def _fed_rows(feed: Any) -> Any:
    """The batches of a feed as Ray Data's source: one line each."""
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


# What a command tells in one line; the rest is a RuntimeError.
_KINDS = (ValueError, TypeError, MemoryError, ImportError, OSError)


def _kind(error: BaseException) -> str:
    return next((kind.__name__ for kind in _KINDS if isinstance(error, kind)), RuntimeError.__name__)


def _cannot_go_on(error: Exception) -> RuntimeError:
    return RuntimeError(f"Ray cannot go on: {' '.join(str(error).split())}")


def _error_of_kind(kind: str, message: str) -> Exception:
    """An error of a worker, to be raised here."""
    kinds: dict[str, type[Exception]] = {each.__name__: each for each in _KINDS}
    return kinds.get(kind, RuntimeError)(message)


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps this process from writing to the terminal's error stream: Ray's core tells of the level of its messages
    there before it heeds it."""
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
    """Keeps Ray from taking SIGTERM for itself: then it could ask no run to stop."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # As Ray does, since no other thread may.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _import_ray() -> None:
    # For a Ray that is started here: it tells its makers how it is used otherwise, and its processes tell the terminal
    # of everything.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # What only its dashboard shows: it would take more and more memory.
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise ImportError('--engine ray takes Ray: pip install "DeepCache[ray]"') from error
