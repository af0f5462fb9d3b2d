"""The records of a batch as Parquet, while a run goes on and at its end."""

from __future__ import annotations

import os
import sys
import uuid

import pyarrow.parquet
import pytest

from DeepCache.batch import BatchRecord
from DeepCache.batch.folder import BatchFolder
from DeepCache.batch.manifest import Journal, check_pyarrow, read_manifest, write_manifest

FULL = BatchRecord(
    "0123",
    "first",
    "ein Kreis ★",
    "a star",
    2**63 - 1,
    64,
    72,
    '{"steps": 6}',
    "fedc",
    "pictures/01/0123.png",
    "ab" * 32,
    2**40,
    0.25,
    4,
    2,
    4,
    10,
    "here",
)
FAILED = BatchRecord("4567", error="why")


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path):
    return BatchFolder(tmp_path if request.param == "disk" else f"memory://{uuid.uuid4().hex}")


def joined(parts):
    return [record for records in parts for record in records]


def test_there_is_no_manifest_at_first(folder):
    assert list(read_manifest(folder)) == []


def test_records_come_back_from_the_manifest(folder):
    write_manifest(folder, iter([FULL, FAILED]))
    assert joined(read_manifest(folder)) == [FULL, FAILED]
    write_manifest(folder, [FAILED])
    assert joined(read_manifest(folder)) == [FAILED]
    write_manifest(folder, [])
    assert joined(read_manifest(folder)) == []


def test_manifest_is_a_table_that_others_can_read(tmp_path):
    write_manifest(BatchFolder(tmp_path), [FULL, FAILED])
    table = pyarrow.parquet.read_table(tmp_path / "manifest.parquet")
    assert table.column_names == [
        *("id", "row_id", "prompt", "negative_prompt", "seed", "width", "height", "settings", "model", "path"),
        *("sha256", "bytes", "seconds", "batch", "full_steps", "shallow_steps", "skipped_steps", "host", "error"),
    ]
    assert table.column("seed").to_pylist() == [2**63 - 1, None]
    assert table.column("error").to_pylist() == ["", "why"]


def test_long_manifest_is_written_in_parts(folder):
    records = [BatchRecord(str(number)) for number in range(20_001)]
    write_manifest(folder, records)
    parts = list(read_manifest(folder))
    assert joined(parts) == records
    assert max(map(len, parts)) <= 10_000


def test_manifest_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    folder = BatchFolder(tmp_path)
    write_manifest(folder, [FULL])

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_manifest(folder, [FAILED])
    assert joined(read_manifest(folder)) == [FULL]
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.parquet"]


def test_journal_keeps_what_was_written_in_order(folder):
    journal = Journal(folder)
    assert list(journal.read()) == []
    journal.write([FULL, FAILED])
    journal.write([BatchRecord("0123", error="later")])
    later = Journal(folder)
    assert joined(later.read()) == [FULL, FAILED, BatchRecord("0123", error="later")]
    later.write([BatchRecord("89")])
    assert joined(Journal(folder).read())[-1] == BatchRecord("89")


def test_order_of_the_journal_is_that_of_its_numbers(folder):
    journal = Journal(folder)
    for number in range(12):
        journal.write([BatchRecord(str(number))])
    assert [record.id for record in joined(Journal(folder).read())] == [str(number) for number in range(12)]


def test_cleared_journal_is_empty(folder):
    Journal(folder).write([FULL])
    journal = Journal(folder)
    journal.write([FAILED])
    journal.clear()
    assert list(Journal(folder).read()) == []
    journal.write([FULL])
    assert joined(Journal(folder).read()) == [FULL]


def test_part_that_a_killed_run_left_half_written_is_no_part(tmp_path):
    folder = BatchFolder(tmp_path)
    Journal(folder).write([FULL])
    (tmp_path / "journal" / ".000000002.parquet.0123.partial").write_bytes(b"PAR1")
    assert joined(Journal(folder).read()) == [FULL]


def test_missing_pyarrow_is_told(monkeypatch):
    check_pyarrow()
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"DeepCache\[batch\]"):
        check_pyarrow()
