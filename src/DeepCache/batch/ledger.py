"""What there is to draw, what is drawn and what failed, in a file, so that memory does not grow with the rows."""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType

from DeepCache.batch.record import BatchRecord
from DeepCache.batch.row import BatchRow, batch_row
from DeepCache.prompts.rows import Row

__all__ = ["Ledger"]

_TABLES = """
CREATE TABLE rows (
    position INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    alike TEXT NOT NULL,
    row TEXT NOT NULL
);
CREATE TABLE counts (id TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE settings (number INTEGER PRIMARY KEY, settings TEXT NOT NULL UNIQUE);
CREATE TABLE records (
    id TEXT PRIMARY KEY,
    failed INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    settings INTEGER NOT NULL,
    record TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE files (id TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE todo (alike TEXT, position INTEGER, PRIMARY KEY (alike, position)) WITHOUT ROWID;
"""

_AT_ONCE = 1000


class Ledger:
    """The books of one run: made anew from the prompts and the folder when it begins, and gone when it ends. They lie
    in the temporary folder of this machine. Use it as a context manager.

    Raises:
        OSError: at the end of the context, where the temporary folder was full.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="deepcache-batch-")
        self._books = sqlite3.connect(Path(self._folder.name) / "ledger.sqlite", isolation_level=None)
        # Lost with the run anyhow; and of memory 16 MiB at most.
        self._books.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -16384;")
        self._books.executescript(_TABLES)
        if os.name != "nt":
            # Nothing stays behind then, however the run ends.
            self._folder.cleanup()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._books.close()
        self._folder.cleanup()
        if isinstance(error, sqlite3.OperationalError):
            raise OSError(f"cannot keep books in the temporary folder {tempfile.gettempdir()!r}: {error}") from error

    def enter_rows(self, rows: Iterable[Row]) -> Iterator[int]:
        """Enters the rows of a prompt file, in their order; gives how many there are now, every now and then."""
        position = 0
        rows = iter(rows)
        while some := list(islice(rows, _AT_ONCE)):
            self._books.execute("BEGIN")
            for row in some:
                found = batch_row(row)
                copy = self._one_more(found.id)
                if copy:
                    found = batch_row(row, copy)
                self._books.execute(
                    "INSERT INTO rows VALUES (?, ?, ?, ?)", (position, found.id, _alike(found), found.to_json())
                )
                position += 1
            self._books.execute("COMMIT")
            yield position

    def enter_records(self, records: Iterable[BatchRecord]) -> None:
        """Enters what is known of rows, in the place of what was known before."""
        self._books.execute("BEGIN")
        for record in records:
            # Long, and as a rule the same for all.
            self._books.execute("INSERT OR IGNORE INTO settings (settings) VALUES (?)", (record.settings,))
            self._books.execute(
                "INSERT OR REPLACE INTO records SELECT ?, ?, ?, number, ? FROM settings WHERE settings = ?",
                (
                    record.id,
                    bool(record.error),
                    record.bytes,
                    json.dumps(vars(record) | {"settings": ""}, ensure_ascii=False),
                    record.settings,
                ),
            )
        self._books.execute("COMMIT")

    def enter_files(self, files: Iterable[tuple[str, int]]) -> None:
        """Enters the pictures that are there: the id and the bytes of each."""
        self._books.execute("BEGIN")
        self._books.executemany("INSERT OR REPLACE INTO files VALUES (?, ?)", files)
        self._books.execute("COMMIT")

    def settle(self, retry_errors: bool) -> None:
        """Works out what is to be done: all rows without a record, those whose picture is gone or of another length
        than its record says, and if asked for those that failed."""
        self._books.execute("BEGIN")
        self._books.execute(
            "DELETE FROM records WHERE NOT failed AND NOT EXISTS "
            "(SELECT 1 FROM files WHERE files.id = records.id AND files.bytes = records.bytes)"
        )
        # Of rows that are no longer asked for, pictures stay, failures do not.
        forgotten = "" if retry_errors else "AND id NOT IN (SELECT id FROM rows)"
        self._books.execute(f"DELETE FROM records WHERE failed {forgotten}")
        self._books.execute(
            "INSERT INTO todo SELECT alike, position FROM rows WHERE id NOT IN (SELECT id FROM records)"
        )
        self._books.execute("COMMIT")

    def batches(self, size: int) -> Iterator[list[BatchRow]]:
        """What is to be done in batches of rows that can be drawn together, smallest first, else in their order."""
        last: tuple[str, int] = ("", -1)
        while True:
            found = self._books.execute(
                "SELECT todo.alike, todo.position, row FROM todo JOIN rows USING (position) "
                "WHERE (todo.alike, todo.position) > (?, ?) ORDER BY todo.alike, todo.position LIMIT ?",
                (*last, size),
            ).fetchall()
            if not found:
                return
            together = [each for each in found if each[0] == found[0][0]]
            last = together[-1][:2]
            yield [BatchRow.from_json(row) for _, _, row in together]

    def records(self) -> Iterator[BatchRecord]:
        """All records: those of the rows in their order, then those of pictures of earlier prompts."""
        for query in (
            "FROM rows JOIN records USING (id) JOIN settings ON records.settings = number ORDER BY position",
            "FROM records JOIN settings ON records.settings = number WHERE id NOT IN (SELECT id FROM rows) ORDER BY id",
        ):
            for record, settings in self._books.execute(f"SELECT record, settings.settings {query}"):
                yield BatchRecord(**json.loads(record) | {"settings": settings})

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self._count("SELECT COUNT(*) FROM rows")

    @property
    def done(self) -> int:
        """How many of them have a picture."""
        return self._count("SELECT COUNT(*) FROM rows JOIN records USING (id) WHERE NOT failed")

    @property
    def failed(self) -> int:
        """How many of them have failed."""
        return self._count("SELECT COUNT(*) FROM rows JOIN records USING (id) WHERE failed")

    def _count(self, query: str) -> int:
        (count,) = self._books.execute(query).fetchone()
        return int(count)

    def _one_more(self, row_id: str) -> int:
        """How many rows of this id there have been before this one."""
        (count,) = self._books.execute(
            "INSERT INTO counts VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1 RETURNING count", (row_id,)
        ).fetchone()
        return int(count) - 1


def _alike(row: BatchRow) -> str:
    """The same for rows that can be drawn together, and in order of size. An error is drawn with nothing."""
    if row.error:
        return f"error {row.id}"
    width, height = row.size or (0, 0)
    return f"{width * height:012} {width:06} {bool(row.negative_prompt):d}"
