"""The index of a batch job: rows and records in an SQLite file, so that memory stays constant."""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from types import TracebackType

from DeepCache.batch.record import BatchRecord
from DeepCache.batch.row import BatchRow, batch_row
from DeepCache.prompts.rows import Row

# The file is lost with the run anyway, and its cache takes 16 MiB.
_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -16384;
CREATE TABLE rows (position INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, row TEXT NOT NULL);
CREATE TABLE copies (id TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE records (
    id TEXT PRIMARY KEY,
    failed INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    settings INTEGER NOT NULL,
    record TEXT NOT NULL,
    complete INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
"""
_GROUP = 1000


class JobIndex:
    """The rows and the records of one run, in the temporary folder of this machine. Use it as a context manager."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="deepcache-batch-")
        self._db = sqlite3.connect(Path(self._folder.name) / "index.sqlite", isolation_level=None)
        self._db.executescript(_TABLES)
        # The settings of records, which are long and mostly the same.
        self._settings: dict[str, int] = {}
        if os.name != "nt":
            # The open file remains usable, and nothing is left behind even if the run is killed.
            self._folder.cleanup()

    def __enter__(self) -> JobIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()
        self._folder.cleanup()
        if isinstance(error, sqlite3.OperationalError):
            raise OSError(f"cannot use the temporary folder {tempfile.gettempdir()!r}: {error}") from error

    def add_rows(self, rows: Iterable[Row]) -> Iterator[int]:
        """Adds the rows of a prompt file in their order, and yields their number from time to time."""
        total, rows = 0, iter(rows)
        while some := list(islice(rows, _GROUP)):
            with self._transaction():
                for row in some:
                    found = batch_row(row)
                    (copy,) = self._db.execute(
                        "INSERT INTO copies VALUES (?, 0) ON CONFLICT DO UPDATE SET count = count + 1 RETURNING count",
                        (found.id,),
                    ).fetchone()
                    found = batch_row(row, copy) if copy else found
                    values = (found.id, _kind(found), found.to_json())
                    self._db.execute("INSERT INTO rows (id, kind, row) VALUES (?, ?, ?)", values)
            total += len(some)
            yield total

    def add_records(self, records: Iterable[BatchRecord]) -> None:
        """Adds records, which replace earlier ones of the same rows."""
        with self._transaction():
            for record in records:
                settings = self._settings.setdefault(record.settings, len(self._settings))
                text = json.dumps(vars(record) | {"settings": ""}, ensure_ascii=False)
                self._db.execute(
                    "INSERT OR REPLACE INTO records (id, failed, bytes, settings, record) VALUES (?, ?, ?, ?, ?)",
                    (record.id, bool(record.error), record.bytes, settings, text),
                )

    def add_files(self, files: Iterable[tuple[str, int]]) -> None:
        """Adds the ids and the sizes of the images that exist, after the records."""
        with self._transaction():
            self._db.executemany("UPDATE records SET complete = 1 WHERE id = ? AND bytes = ?", files)

    def forget(self, errors: bool) -> None:
        """Drops the records whose image is missing or has another size, and errors: all, or those of removed rows."""
        with self._transaction():
            self._db.execute("DELETE FROM records WHERE NOT failed AND NOT complete")
            condition = "" if errors else "AND id NOT IN (SELECT id FROM rows)"
            self._db.execute(f"DELETE FROM records WHERE failed {condition}")

    def batches(self, size: int) -> Iterator[list[BatchRow]]:
        """The rows without a record in batches that can be generated together, the smallest size first."""
        missing = self._db.execute(
            "SELECT kind, row FROM rows WHERE id NOT IN (SELECT id FROM records) ORDER BY kind, position"
        )
        for _, rows in groupby(missing, key=itemgetter(0)):
            while some := [BatchRow.from_json(row) for _, row in islice(rows, size)]:
                yield some

    def records(self) -> Iterator[BatchRecord]:
        """All records in the order of the rows, then those of the images of removed rows."""
        settings = list(self._settings)
        for query in (
            "FROM rows JOIN records USING (id) ORDER BY position",
            "FROM records WHERE id NOT IN (SELECT id FROM rows) ORDER BY id",
        ):
            for number, record in self._db.execute(f"SELECT settings, record {query}"):
                yield BatchRecord(**json.loads(record) | {"settings": settings[number]})

    def counts(self) -> tuple[int, int, int]:
        """The numbers of rows, of rows with an image, and of failed rows."""
        rows, done, failed = self._db.execute(
            "SELECT COUNT(*), COUNT(*) FILTER (WHERE NOT failed), COUNT(*) FILTER (WHERE failed) "
            "FROM rows LEFT JOIN records USING (id)"
        ).fetchone()
        return rows, done, failed

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN")
        yield
        self._db.execute("COMMIT")


def _kind(row: BatchRow) -> str:
    """Equal for rows that can be generated together, and in the order of their sizes; unique for errors."""
    if row.error:
        return f"error {row.id}"
    width, height = row.size or (0, 0)
    return f"{width * height:012} {width:06} {bool(row.negative_prompt):d}"
