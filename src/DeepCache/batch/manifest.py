"""The records of a batch in Parquet: the journal of a run, and the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import fields
from itertools import islice
from typing import TYPE_CHECKING

from DeepCache.batch.folder import BatchFolder
from DeepCache.batch.record import BatchRecord

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.parquet"
JOURNAL = "journal"
_GROUP = 10_000


class Journal:
    """The records of a run that are not in the manifest yet, in numbered files."""

    def __init__(self, folder: BatchFolder) -> None:
        self._folder = folder
        self._parts = sorted(name for name, _ in folder.files(JOURNAL))
        self._last = int(self._parts[-1].removeprefix(f"{JOURNAL}/").removesuffix(".parquet")) if self._parts else 0

    def read(self) -> Iterator[list[BatchRecord]]:
        """The records in groups, the latest last."""
        for name in self._parts:
            yield from _read(self._folder, name)

    def write(self, records: list[BatchRecord]) -> None:
        """Adds records."""
        self._last += 1
        self._parts.append(f"{JOURNAL}/{self._last:09}.parquet")
        _write(self._folder, self._parts[-1], records)

    def clear(self) -> None:
        """Removes all records."""
        for name in self._parts:
            self._folder.remove(name)
        self._parts = []


def read_manifest(folder: BatchFolder) -> Iterator[list[BatchRecord]]:
    """The records of the manifest in groups; none if there is no manifest yet."""
    with suppress(FileNotFoundError):
        yield from _read(folder, MANIFEST)


def write_manifest(folder: BatchFolder, records: Iterable[BatchRecord]) -> None:
    """Replaces the manifest. On an `OSError` the previous one stays."""
    _write(folder, MANIFEST, records)


def _read(folder: BatchFolder, name: str) -> Iterator[list[BatchRecord]]:
    import pyarrow.parquet as pq

    with folder.open(name) as file:
        for batch in pq.ParquetFile(file).iter_batches(_GROUP):
            yield [BatchRecord(**values) for values in batch.to_pylist()]


def _write(folder: BatchFolder, name: str, records: Iterable[BatchRecord]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, records = _schema(), iter(records)
    with folder.create(name) as file, pq.ParquetWriter(file, schema) as writer:
        while some := list(islice(records, _GROUP)):
            writer.write_table(pa.Table.from_pylist([vars(record) for record in some], schema=schema))


def _schema() -> pa.Schema:
    import pyarrow as pa

    types = {"seed": pa.int64(), "bytes": pa.int64(), "seconds": pa.float64()}
    types |= dict.fromkeys(("width", "height", "batch", "full_steps", "shallow_steps", "skipped_steps"), pa.int32())
    return pa.schema([(field.name, types.get(field.name, pa.string())) for field in fields(BatchRecord)])
