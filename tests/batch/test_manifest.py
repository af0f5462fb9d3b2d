"""The journal of a run and the manifest."""

from __future__ import annotations

import os
import uuid

import pyarrow.parquet
import pytest

from DeepCache.batch import BatchRecord
from DeepCache.batch.folder import BatchFolder
from DeepCache.batch.manifest import Journal, read_manifest, write_manifest

FULL = BatchRecord(
    *("0123", "first", "ein Kreis ★", "a star", 2**63 - 1, 64, 72, '{"steps": 6}', "fedc", "pictures/01/0123.png"),
    *("ab" * 32, 2**40, 0.25, 4, 2, 4, 10, "here"),
)
FAILED = BatchRecord("4567", error="why")


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path):
    return BatchFolder(tmp_path if request.param == "disk" else f"memory://{uuid.uuid4().hex}")


def joined(parts):
    return [record for records in parts for record in records]


def test_records_can_be_read_from_the_manifest(folder):
    assert list(read_manifest(folder)) == []
    for records in ([FULL, FAILED], [FAILED], []):
        write_manifest(folder, iter(records))
        assert joined(read_manifest(folder)) == records


def test_the_manifest_is_a_table_for_other_programs(tmp_path):
    write_manifest(BatchFolder(tmp_path), [FULL, FAILED])
    table = pyarrow.parquet.read_table(tmp_path / "manifest.parquet")
    expected = {
        **dict.fromkeys(("id", "row_id", "prompt", "negative_prompt"), "string"),
        **{"seed": "int64", "width": "int32", "height": "int32"},
        **dict.fromkeys(("settings", "model", "path", "sha256"), "string"),
        **{"bytes": "int64", "seconds": "double", "batch": "int32"},
        **{"full_steps": "int32", "shallow_steps": "int32", "skipped_steps": "int32"},
        **{"host": "string", "error": "string"},
    }
    assert [(field.name, str(field.type)) for field in table.schema] == list(expected.items())
    assert table.column("seed").to_pylist() == [2**63 - 1, None]
    assert table.column("error").to_pylist() == ["", "why"]


def test_long_manifests_are_written_in_parts(folder):
    records = [BatchRecord(str(number)) for number in range(20_001)]
    write_manifest(folder, records)
    parts = list(read_manifest(folder))
    assert joined(parts) == records
    assert max(map(len, parts)) <= 10_000


def test_a_failed_write_leaves_the_previous_manifest(tmp_path, monkeypatch):
    folder = BatchFolder(tmp_path)
    write_manifest(folder, [FULL])

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_manifest(folder, [FAILED])
    assert joined(read_manifest(folder)) == [FULL]
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.parquet"]


def test_the_journal_keeps_records_in_their_order(folder):
    journal = Journal(folder)
    assert list(journal.read()) == []
    journal.write([FULL, FAILED])
    journal.write([BatchRecord("0123", error="later")])
    later = Journal(folder)
    assert joined(later.read()) == [FULL, FAILED, BatchRecord("0123", error="later")]
    for number in range(12):
        later.write([BatchRecord(str(number))])
    assert [record.id for record in joined(Journal(folder).read())][3:] == [str(number) for number in range(12)]


def test_a_cleared_journal_is_empty(folder):
    Journal(folder).write([FULL])
    journal = Journal(folder)
    journal.write([FAILED])
    journal.clear()
    assert list(Journal(folder).read()) == []
    journal.write([FULL])
    assert joined(Journal(folder).read()) == [FULL]


def test_the_journal_ignores_incomplete_files(tmp_path):
    folder = BatchFolder(tmp_path)
    Journal(folder).write([FULL])
    (tmp_path / "journal" / ".000000002.parquet.0123.partial").write_bytes(b"PAR1")
    assert joined(Journal(folder).read()) == [FULL]
