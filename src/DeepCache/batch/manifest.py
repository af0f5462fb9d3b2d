"""The records of a batch as Parquet: those of a run while it goes on, and the manifest at its end."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from DeepCache.batch.folder import BatchFolder
from DeepCache.batch.record import BatchRecord

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["JOURNAL", "MANIFEST", "Journal", "check_pyarrow", "read_manifest", "write_manifest"]

MANIFEST = "manifest.parquet"
"""The name of the manifest in the folder of a batch."""

JOURNAL = "journal"
"""Where the records of a run are kept while it goes on."""

_GROUP = 10_000


def check_pyarrow() -> None:
    """Raises:
    ImportError: pyarrow is missing.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ImportError('deepcache batch takes pyarrow: pip install "DeepCache[batch]"') from error


class Journal:
    """The records of a run, kept every now and then while it goes on: what is in the manifest once it has ended.

    Args:
        folder: the folder of the batch.
    """

    def __init__(self, folder: BatchFolder) -> None:
        self._folder = folder
        self._parts = [name for name, _ in folder.sizes(JOURNAL)]
        last = int(self._parts[-1].removesuffix(".parquet")) if self._parts else 0
        self._next = last + 1

    def read(self) -> Iterator[list[BatchRecord]]:
        """The records, some at a time, the latest last."""
        for name in self._parts:
            yield from _read(self._folder, f"{JOURNAL}/{name}")

    def write(self, records: list[BatchRecord]) -> None:
        """Keeps some more records.

        Raises:
            OSError: they cannot be written.
        """
        import pyarrow.parquet as pq

        file = io.BytesIO()
        pq.write_table(_table(records), file)
        name = f"{self._next:09}.parquet"
        self._folder.write(f"{JOURNAL}/{name}", file.getvalue())
        self._parts.append(name)
        self._next += 1

    def clear(self) -> None:
        """Removes what the manifest holds by now."""
        for name in self._parts:
            self._folder.remove(f"{JOURNAL}/{name}")
        self._parts = []


def read_manifest(folder: BatchFolder) -> Iterator[list[BatchRecord]]:
    """The records in the manifest of a batch, some at a time; none where there is no manifest yet."""
    if MANIFEST in dict(folder.sizes("")):
        yield from _read(folder, MANIFEST)


def write_manifest(folder: BatchFolder, records: Iterable[BatchRecord]) -> None:
    """Writes the manifest of a batch, in the place of the one before.

    Raises:
        OSError: it cannot be written; the one before stays.
    """
    import pyarrow.parquet as pq

    records = iter(records)
    with tempfile.TemporaryDirectory(prefix="deepcache-batch-") as place:
        path = Path(place) / MANIFEST
        with pq.ParquetWriter(path, _schema()) as writer:
            while some := list(islice(records, _GROUP)):
                writer.write_table(_table(some))
        folder.put(path, MANIFEST)


def _read(folder: BatchFolder, name: str) -> Iterator[list[BatchRecord]]:
    import pyarrow.parquet as pq

    with folder.open(name) as file:
        for batch in pq.ParquetFile(file).iter_batches(_GROUP):
            yield [BatchRecord(**values) for values in batch.to_pylist()]


def _table(records: list[BatchRecord]) -> pa.Table:
    import pyarrow as pa

    rows: list[dict[str, Any]] = [vars(record) for record in records]
    return pa.Table.from_pylist(rows, schema=_schema())


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()),
            ("row_id", pa.string()),
            ("prompt", pa.string()),
            ("negative_prompt", pa.string()),
            ("seed", pa.int64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("settings", pa.string()),
            ("model", pa.string()),
            ("path", pa.string()),
            ("sha256", pa.string()),
            ("bytes", pa.int64()),
            ("seconds", pa.float64()),
            ("batch", pa.int32()),
            ("full_steps", pa.int32()),
            ("shallow_steps", pa.int32()),
            ("skipped_steps", pa.int32()),
            ("host", pa.string()),
            ("error", pa.string()),
        ]
    )
