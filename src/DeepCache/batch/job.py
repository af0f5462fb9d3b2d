"""Draws all rows of a prompt file into a folder, each once, whatever interrupts it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from DeepCache.batch.differences import differences
from DeepCache.batch.folder import BatchFolder
from DeepCache.batch.ledger import Ledger
from DeepCache.batch.local_engine import LocalEngine
from DeepCache.batch.manifest import JOURNAL, Journal, check_pyarrow, read_manifest, write_manifest
from DeepCache.batch.picture import FOLDER
from DeepCache.batch.record import BatchRecord
from DeepCache.batch.row import BatchRow
from DeepCache.batch.settings import BatchSettings
from DeepCache.batch.worker import WorkerMaker, WorkerSettings
from DeepCache.models.memory import check_offload
from DeepCache.prompts import read_rows

__all__ = ["JOB", "BatchProgress", "BatchSummary", "Engine", "generate_batch", "run_batch"]

JOB = "job.json"
"""The name of the file in the folder of a batch that says what all its pictures have in common."""

_FORMAT = "DeepCache batch 1"
_LOCK = ".lock"
_JOURNAL_ROWS, _JOURNAL_SECONDS = 1000, 10.0


class Engine(Protocol):
    """Has batches drawn by workers, somewhere."""

    def start(self, make_worker: WorkerMaker, expected: dict[str, Any] | None) -> dict[str, Any]:
        """Gets ready and gives the `facts` of the workers, which are the `expected` ones where there are such.

        Raises:
            ValueError: they are others.
        """

    def draw(self, batches: Iterable[list[BatchRow]]) -> Iterator[list[BatchRecord]]:
        """Draws batches, in any order, and gives their records as they come. Of `batches`, no more is taken than is
        soon to be drawn; when it ends, what is in hand is finished.

        Raises:
            OSError: a picture cannot be written.
            RuntimeError: a worker cannot go on.
        """

    def close(self) -> None:
        """Lets go of the workers. Without effect where there are none."""


@dataclass(frozen=True)
class BatchProgress:
    """How far a batch is.

    Args:
        stage: what is being done: `reading the prompts`, `looking at what is there`, `loading the model`, `drawing` or
            `writing the manifest`.
        rows: how many rows there are, as far as is known.
        done: rows with a picture.
        failed: rows that have failed.
        drawn: rows that were done or failed in this run.
        seconds: since drawing began.
    """

    stage: str
    rows: int = 0
    done: int = 0
    failed: int = 0
    drawn: int = 0
    seconds: float = 0.0

    @property
    def per_second(self) -> float:
        """Rows a second since drawing began; 0 before the first."""
        return self.drawn / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """How long the rest will take at that; None before the first."""
        return (self.rows - self.done - self.failed) / self.per_second if self.per_second else None


@dataclass(frozen=True)
class BatchSummary:
    """What came of a run.

    Args:
        rows: how many rows there are.
        done: rows with a picture.
        failed: rows without one, whose errors are in the manifest.
        drawn: rows that were done or failed in this run.
        seconds: what drawing took.
    """

    rows: int
    done: int
    failed: int
    drawn: int
    seconds: float

    @property
    def left(self) -> int:
        """Rows that are still to be drawn, since the run was asked to stop."""
        return self.rows - self.done - self.failed


def generate_batch(
    prompts: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: BatchSettings | None = None,
    *,
    batch: int = 1,
    threads: int = 1,
    device: str = "auto",
    offload: str | None = None,
    vae_slicing: bool = False,
    engine: Engine | None = None,
    retry_errors: bool = False,
    on_progress: Callable[[BatchProgress], None] | None = None,
    stop: Callable[[], bool] = bool,
) -> BatchSummary:
    """Draws every row of a prompt file once, and goes on where an earlier run was stopped or killed.

    A picture depends on its row, the settings and the model alone: it has the same bits whichever worker draws it, in
    whatever order and company, and however often it is tried. With another `batch`, on the CPU with other `threads`,
    and on another kind of device it is close, not the same, since kernels then compute in another order.

    In the folder are the pictures (`pictures/01/0123….png`), `manifest.parquet` with a line for each row, and
    `job.json` with the settings. Of rows that are wrong, the manifest has the error.

    Args:
        prompts: a file, or a URL of fsspec, that `DeepCache.prompts.read_rows` reads; for what a row may say see
            `batch_row`.
        output: a folder, or a URL of fsspec.
        settings: what all rows have in common.
        batch: rows in one pipeline call, all of one size.
        threads: of PyTorch on the CPU, for each worker.
        device: as `load_pipeline` takes it, for each worker.
        offload: as `load_pipeline` takes it, for each worker; the pictures are the same.
        vae_slicing: whether the VAE decodes the pictures of a pipeline call one after the other, which takes less
            memory. As with another `batch`, pictures are close, not the same.
        engine: who draws: a `LocalEngine` (the default) or a `RayEngine`.
        retry_errors: whether rows are tried again that failed in an earlier run.
        on_progress: called every now and then.
        stop: asked before every batch; once it says yes, what is in hand is finished and the run ends.

    Raises:
        FileNotFoundError: there is no such prompt file.
        ValueError: the prompt file is not what its ending says or has no rows, or the folder was begun with other
            settings or another model; further as `load_pipeline` and `set_scheduler`.
        OSError: a picture cannot be written, as on a full disk; what is finished stays, and a further run goes on.
        RuntimeError: another run is at work in the folder, or a worker cannot go on.
        ImportError: a package is missing.

    Example:
        >>> from DeepCache.batch import BatchSettings, generate_batch
        >>> _ = Path("prompts.txt").write_text("a red circle\\na blue star\\n")
        >>> generate_batch("prompts.txt", "pictures", BatchSettings(steps=6)).done
        2
        >>> import pyarrow.parquet
        >>> pyarrow.parquet.read_table("pictures/manifest.parquet").column("prompt").to_pylist()
        ['a red circle', 'a blue star']
    """
    settings = BatchSettings() if settings is None else settings
    for name, value in (("batch", batch), ("threads", threads)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    check_offload(offload, settings.runtime)
    folder = BatchFolder(output)
    return run_batch(
        prompts,
        folder,
        settings.to_dict(),
        settings.asked(),
        WorkerSettings(settings, folder, batch, threads, device, offload, vae_slicing),
        batch=batch,
        engine=LocalEngine() if engine is None else engine,
        retry_errors=retry_errors,
        on_progress=on_progress,
        stop=stop,
    )


def run_batch(
    prompts: str | os.PathLike[str],
    folder: BatchFolder,
    common: dict[str, Any],
    asked: dict[str, Any],
    make_worker: WorkerMaker,
    *,
    batch: int,
    engine: Engine,
    retry_errors: bool = False,
    on_progress: Callable[[BatchProgress], None] | None = None,
    stop: Callable[[], bool] = bool,
) -> BatchSummary:
    """`generate_batch` with any kind of worker.

    Args:
        prompts: as for `generate_batch`, and so are the others that it has.
        folder: where the workers write.
        common: the settings that a folder keeps to, as JSON can hold them.
        asked: what was asked for of that which workers load, as JSON can hold it; the folder keeps to what they loaded.
        make_worker: makes the workers.
    """
    check_pyarrow()
    tell = on_progress or (lambda progress: None)
    rows = read_rows(os.fspath(prompts))
    # Before a folder is made for what is not there.
    first_row = next(rows, None)
    if first_row is None:
        raise ValueError(f"the prompt file {os.fspath(prompts)!r} holds no prompt")
    folder.make()
    with _locked(folder), Ledger() as ledger:
        job = _begun(folder, common)
        for count in ledger.enter_rows(chain([first_row], rows)):
            tell(BatchProgress("reading the prompts", rows=count))
        tell(BatchProgress("looking at what is there", rows=ledger.rows))
        _sweep(folder)
        journal = Journal(folder)
        _look(folder, journal, ledger)
        ledger.settle(retry_errors)
        run = _Run(ledger, journal, tell)
        try:
            batches = run.drawable(batch, stop)
            first = next(batches, None)
            # Where nothing is left to do, other words may still mean another model.
            changed = "" if job is None else differences(job["asked"], asked)
            if first is not None or changed:
                tell(run.progress("loading the model"))
                facts = _start(engine, make_worker, None if job is None else job["loaded"], changed)
                if job is None:
                    _begin(folder, common, asked, facts)
            if first is not None:
                run.begin()
                for records in engine.draw(chain([first], batches)):
                    run.keep(records)
        except BaseException:
            # What stopped the run, a full disk perhaps, may stop this too. Then the next run finds it again.
            with suppress(OSError):
                run.end(folder)
            raise
        finally:
            engine.close()
        if first is not None:
            _sweep(folder)
        run.end(folder)
        summary = run.summary()
    if summary.left and not stop():
        raise RuntimeError(
            f"{summary.left} of {summary.rows} rows got lost on their way to a worker or back; run this again"
        )
    return summary


def _start(engine: Engine, make_worker: WorkerMaker, expected: dict[str, Any] | None, changed: str) -> dict[str, Any]:
    """The facts of the workers. Where these are refused, the error says what was asked for instead: a hash of the
    weights tells nobody which option it was."""
    try:
        return engine.start(make_worker, expected)
    except ValueError as error:
        if changed:
            raise ValueError(f"{error} (what is asked for: {changed})") from error
        raise


class _Run:
    """The drawing part of a run: what is kept, counted and told."""

    def __init__(self, ledger: Ledger, journal: Journal, tell: Callable[[BatchProgress], None]) -> None:
        self._ledger = ledger
        self._journal = journal
        self._tell = tell
        self._rows, self._done, self._failed = ledger.rows, ledger.done, ledger.failed
        self._drawn = 0
        self._unwritten: list[BatchRecord] = []
        self._written_at = self._start = time.perf_counter()

    def begin(self) -> None:
        self._start = time.perf_counter()
        self._tell(self.progress("drawing"))

    def drawable(self, size: int, stop: Callable[[], bool]) -> Iterator[list[BatchRow]]:
        """What is to be drawn, until it is time to stop. Rows that cannot be drawn are kept as such on the way."""
        for batch in self._ledger.batches(size):
            if stop():
                return
            if batch[0].error:
                self.keep([BatchRecord(row.id, row.row_id, row.prompt, error=row.error) for row in batch])
            else:
                yield batch

    def keep(self, records: list[BatchRecord]) -> None:
        self._ledger.enter_records(records)
        self._unwritten += records
        failed = sum(bool(record.error) for record in records)
        self._failed += failed
        self._done += len(records) - failed
        self._drawn += len(records)
        due = time.perf_counter() - self._written_at >= _JOURNAL_SECONDS
        if due or len(self._unwritten) >= _JOURNAL_ROWS:
            self._write()
        self._tell(self.progress("drawing"))

    def end(self, folder: BatchFolder) -> None:
        if not self._drawn and folder.read(JOB) is None:
            return
        self._write()
        self._tell(self.progress("writing the manifest"))
        write_manifest(folder, self._ledger.records())
        self._journal.clear()

    def progress(self, stage: str) -> BatchProgress:
        return BatchProgress(
            stage, self._rows, self._done, self._failed, self._drawn, time.perf_counter() - self._start
        )

    def summary(self) -> BatchSummary:
        seconds = time.perf_counter() - self._start
        return BatchSummary(self._rows, self._ledger.done, self._ledger.failed, self._drawn, seconds)

    def _write(self) -> None:
        if self._unwritten:
            self._journal.write(self._unwritten)
        self._unwritten = []
        self._written_at = time.perf_counter()


def _look(folder: BatchFolder, journal: Journal, ledger: Ledger) -> None:
    """Enters what earlier runs left: records and pictures."""
    for records in read_manifest(folder):
        ledger.enter_records(records)
    for records in journal.read():
        ledger.enter_records(records)
    for name in folder.folders(FOLDER):
        ledger.enter_files((Path(file).stem, size) for file, size in folder.sizes(f"{FOLDER}/{name}"))


def _sweep(folder: BatchFolder) -> None:
    """Removes what was left half written by runs that were killed, or by workers that died while others went on."""
    for name in ("", JOURNAL, *(f"{FOLDER}/{name}" for name in folder.folders(FOLDER))):
        folder.sweep(name)


def _begun(folder: BatchFolder, common: dict[str, Any]) -> dict[str, Any] | None:
    """What the folder was begun with; None where it is new.

    Raises:
        ValueError: it was begun with other settings, or is not that of a batch.
    """
    data = folder.read(JOB)
    if data is None:
        return None
    try:
        job: dict[str, Any] = json.loads(data)
        if job["format"] != _FORMAT:
            raise ValueError(f"its format is {job['format']!r} and not {_FORMAT!r}")
        _ = job["asked"], job["loaded"]
        changed = differences(job["settings"], json.loads(json.dumps(common)))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the {JOB} in {str(folder)!r} cannot be read: {error}; take another folder") from error
    if changed:
        raise ValueError(f"the folder {str(folder)!r} was begun with other settings: {changed}; take another folder")
    return job


def _begin(folder: BatchFolder, common: dict[str, Any], asked: dict[str, Any], facts: dict[str, Any]) -> None:
    job = {"format": _FORMAT, "settings": common, "asked": asked, "loaded": facts}
    folder.write(JOB, json.dumps(job, indent=2, ensure_ascii=False).encode() + b"\n")


@contextmanager
def _locked(folder: BatchFolder) -> Iterator[None]:
    """Keeps a second run out of a folder on a disk, for as long as this one lives. Object stores have no locks."""
    if not folder.local:
        yield
        return

    from filelock import FileLock, Timeout

    lock = FileLock(folder.path(_LOCK), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise RuntimeError(f"another run is at work in the folder {str(folder)!r}") from error
    try:
        yield
    finally:
        lock.release()
