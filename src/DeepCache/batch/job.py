"""Generates an image for every row of a prompt file exactly once, and resumes after interruptions."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

from DeepCache.batch.engine import Engine, LocalEngine, WorkerMaker
from DeepCache.batch.folder import BatchFolder
from DeepCache.batch.job_index import JobIndex
from DeepCache.batch.manifest import JOURNAL, Journal, read_manifest, write_manifest
from DeepCache.batch.record import IMAGES, BatchRecord
from DeepCache.batch.row import BatchRow
from DeepCache.batch.worker import PipelineWorker, shared_settings
from DeepCache.extras import require
from DeepCache.generation.differences import settings_differences
from DeepCache.generation.settings import GenerationSettings
from DeepCache.models.memory import check_offload
from DeepCache.prompts import read_rows

JOB = "job.json"
_FORMAT = "DeepCache batch 1"
_JOURNAL_ROWS, _JOURNAL_SECONDS = 1000, 10.0


@dataclass(frozen=True)
class BatchProgress:
    """The progress of a batch.

    Args:
        stage: the current activity: `reading the prompts`, `checking existing images`, `loading the model`,
            `generating` or `writing the manifest`.
        rows: the number of rows, as far as it is known.
        done: rows with an image.
        failed: rows that failed.
        drawn: rows that were finished or failed in this run.
        seconds: since the first row was started.
    """

    stage: str
    rows: int = 0
    done: int = 0
    failed: int = 0
    drawn: int = 0
    seconds: float = 0.0

    @property
    def per_second(self) -> float:
        """Rows per second in this run; 0 before the first one is finished."""
        return self.drawn / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """The estimated time that the remaining rows take; None before the first one is finished."""
        return (self.rows - self.done - self.failed) / self.per_second if self.per_second else None


@dataclass(frozen=True)
class BatchSummary:
    """The result of a run.

    Args:
        rows: the number of rows.
        done: rows with an image.
        failed: rows without one, whose errors are in the manifest.
        drawn: rows that were finished or failed in this run.
        seconds: the duration of the generation.
    """

    rows: int
    done: int
    failed: int
    drawn: int
    seconds: float

    @property
    def left(self) -> int:
        """The remaining rows of a run that was stopped."""
        return self.rows - self.done - self.failed


def generate_batch(
    prompts: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: GenerationSettings | None = None,
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
    """Generates an image for every row of a prompt file exactly once. Resumes if an earlier run was stopped or killed.

    An image depends on its row, the settings and the model alone. It is bit-identical regardless of the worker, of
    order and batch composition, and of interruptions. With another `batch`, with other `threads` on the CPU, or on
    another kind of device it is close but not identical, because kernels compute in another order.

    The output folder contains the images (`pictures/01/0123….png`), `manifest.parquet` with a line for each row, and
    `job.json` with the settings. The manifest also contains the errors of rows that failed.

    Args:
        prompts: a file or URL that `DeepCache.prompts.read_rows` reads. `batch_row` lists the values of a row.
        output: a folder, or a URL of fsspec.
        settings: the settings shared by all rows, without prompts.
        batch: rows of the same size in one pipeline call.
        threads: threads of PyTorch on the CPU in each worker.
        device: the device of each worker, see `load_pipeline`.
        offload: the kind of offloading in each worker, see `load_pipeline`. The images are the same.
        vae_slicing: decode the images of a pipeline call one after the other, which requires less memory. As with
            another `batch`, images are close but not identical.
        engine: a `LocalEngine` (the default) or a `RayEngine`.
        retry_errors: retry the rows that failed in an earlier run.
        on_progress: called from time to time.
        stop: called before every batch. Once it returns true, the batches that were started are finished and the run
            ends.

    Raises:
        FileNotFoundError: the prompt file does not exist.
        ValueError: the prompt file is not what its extension says or has no rows, the folder was started with different
            settings or another model, or as for `load_pipeline` and `set_scheduler`.
        OSError: an image cannot be written, for example on a full disk. Finished images stay, and another run resumes.
        RuntimeError: another run uses the folder, or a worker cannot continue.
        ImportError: a package is missing.

    Example:
        >>> from pathlib import Path
        >>> from DeepCache.batch import BatchSettings, generate_batch
        >>> _ = Path("prompts.txt").write_text("a red circle\\na blue star\\n")
        >>> generate_batch("prompts.txt", "output", BatchSettings(steps=6)).done
        2
        >>> import pyarrow.parquet
        >>> pyarrow.parquet.read_table("output/manifest.parquet").column("prompt").to_pylist()
        ['a red circle', 'a blue star']
    """
    require("batch", "generate_batch")
    settings = GenerationSettings() if settings is None else settings
    for name, value in (("batch", batch), ("threads", threads)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    check_offload(offload, settings.runtime)
    folder = BatchFolder(output)
    return run_batch(
        prompts,
        folder,
        shared_settings(settings),
        _asked(settings),
        partial(PipelineWorker, settings, folder, batch, threads, device, offload, vae_slicing),
        batch=batch,
        engine=LocalEngine() if engine is None else engine,
        retry_errors=retry_errors,
        on_progress=on_progress,
        stop=stop,
    )


def _asked(settings: GenerationSettings) -> dict[str, Any]:
    """The options that choose the model, as JSON values."""
    names = ("model", "vae", "config", "guidance", "scheduler", "dtype")
    asked = {name: getattr(settings, name) for name in names if name != "config" or settings.config is not None}
    asked |= {"loras": [list(lora) for lora in settings.loras]} if settings.loras else {}
    return asked | ({"embeddings": list(settings.embeddings)} if settings.embeddings else {})


def run_batch(
    prompts: str | os.PathLike[str],
    folder: BatchFolder,
    settings: dict[str, Any],
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

    The folder is bound to the `settings` and to the facts of the workers. The `asked` values, such as the path of the
    model, may differ if the facts are the same, because a model may have another path on another machine.
    """
    tell = on_progress or (lambda progress: None)
    rows = read_rows(os.fspath(prompts))
    # No folder is created for an empty prompt file.
    first_row = next(rows, None)
    if first_row is None:
        raise ValueError(f"the prompt file {os.fspath(prompts)!r} contains no prompt")
    folder.make()
    with _locked(folder), JobIndex() as index:
        job = _read_job(folder, settings)
        for count in index.add_rows(chain([first_row], rows)):
            tell(BatchProgress("reading the prompts", rows=count))
        tell(BatchProgress("checking existing images", rows=index.counts()[0]))
        run = _Run(folder, index, tell, retry_errors)
        try:
            batches = run.batches(batch, stop)
            first = next(batches, None)
            # Even if nothing is left to do, a different request may mean another model.
            changed = "" if job is None else settings_differences(job["asked"], asked)
            if first is not None or changed:
                run.report("loading the model")
                facts = _start(engine, make_worker, None if job is None else job["loaded"], changed)
                if job is None:
                    job = {"format": _FORMAT, "settings": settings, "asked": asked, "loaded": facts}
                    folder.write(JOB, json.dumps(job, indent=2, ensure_ascii=False).encode() + b"\n")
            if first is not None:
                run.begin()
                for records in engine.draw(chain([first], batches)):
                    run.keep(records)
        except BaseException:
            # A full disk may stop this too. Then the next run finds the images.
            with suppress(OSError):
                run.end()
            raise
        finally:
            engine.close()
        if first is not None:
            _remove_partial(folder)
        run.end()
        summary = run.summary()
    if summary.left and not stop():
        raise RuntimeError(f"{summary.left} of {summary.rows} rows were lost by the engine. Run this again.")
    return summary


def _start(engine: Engine, make_worker: WorkerMaker, expected: dict[str, Any] | None, changed: str) -> dict[str, Any]:
    try:
        return engine.start(make_worker, expected)
    except ValueError as error:
        if not changed:
            raise
        # A hash of the weights does not show which option differs.
        raise ValueError(f"{error} (requested: {changed})") from error


class _Run:
    """The records of a run: counted, reported and written from time to time."""

    def __init__(
        self, folder: BatchFolder, index: JobIndex, tell: Callable[[BatchProgress], None], retry_errors: bool
    ) -> None:
        self._folder, self._index, self._tell = folder, index, tell
        _remove_partial(folder)
        self._journal = Journal(folder)
        for records in chain(read_manifest(folder), self._journal.read()):
            index.add_records(records)
        index.add_files((PurePosixPath(name).stem, size) for name, size in folder.files(IMAGES))
        index.forget(errors=retry_errors)
        self._rows, self._done, self._failed = index.counts()
        self._finished = 0
        self._unwritten: list[BatchRecord] = []
        self._written_at = self._start = time.perf_counter()

    def begin(self) -> None:
        self._start = time.perf_counter()
        self.report("generating")

    def batches(self, size: int, stop: Callable[[], bool]) -> Iterator[list[BatchRow]]:
        """The batches to generate, until it is time to stop. Keeps the records of rows that cannot be generated."""
        for batch in self._index.batches(size):
            if stop():
                return
            if batch[0].error:
                self.keep([BatchRecord(row.id, row.row_id, row.prompt, error=row.error) for row in batch])
            else:
                yield batch

    def keep(self, records: list[BatchRecord]) -> None:
        self._index.add_records(records)
        self._unwritten += records
        failed = sum(bool(record.error) for record in records)
        self._failed += failed
        self._done += len(records) - failed
        self._finished += len(records)
        due = time.perf_counter() - self._written_at >= _JOURNAL_SECONDS
        if due or len(self._unwritten) >= _JOURNAL_ROWS:
            self._write()
        self.report("generating")

    def end(self) -> None:
        if not self._finished and self._folder.read(JOB) is None:
            return
        self._write()
        self.report("writing the manifest")
        write_manifest(self._folder, self._index.records())
        self._journal.clear()

    def report(self, stage: str) -> None:
        seconds = time.perf_counter() - self._start
        self._tell(BatchProgress(stage, self._rows, self._done, self._failed, self._finished, seconds))

    def summary(self) -> BatchSummary:
        return BatchSummary(*self._index.counts(), self._finished, time.perf_counter() - self._start)

    def _write(self) -> None:
        if self._unwritten:
            self._journal.write(self._unwritten)
        self._unwritten = []
        self._written_at = time.perf_counter()


def _remove_partial(folder: BatchFolder) -> None:
    folder.remove_partial("", depth=1)
    folder.remove_partial(JOURNAL)
    folder.remove_partial(IMAGES)


def _read_job(folder: BatchFolder, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The content of `job.json`; None in a new folder. Other settings, and other files, are a `ValueError`."""
    data = folder.read(JOB)
    if data is None:
        return None
    try:
        job: dict[str, Any] = json.loads(data)
        if job["format"] != _FORMAT:
            raise ValueError(f"its format is {job['format']!r}, not {_FORMAT!r}")
        _ = job["asked"], job["loaded"]
        changed = settings_differences(job["settings"], json.loads(json.dumps(settings)))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read {JOB} in {str(folder)!r}: {error}. Use another folder.") from error
    if changed:
        raise ValueError(
            f"the folder {str(folder)!r} was started with different settings: {changed}. Use another folder."
        )
    return job


@contextmanager
def _locked(folder: BatchFolder) -> Iterator[None]:
    """Keeps other runs out of a local folder. Object stores have no locks."""
    if not folder.local:
        yield
        return

    from filelock import FileLock, Timeout

    lock = FileLock(folder.path(".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise RuntimeError(f"another run uses the folder {str(folder)!r}") from error
    try:
        yield
    finally:
        lock.release()
