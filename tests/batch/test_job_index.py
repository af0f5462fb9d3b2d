"""The rows and records of a run, and the rows that are missing."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from pathlib import Path

import pytest

from DeepCache.batch import BatchRecord, batch_row
from DeepCache.batch.job_index import JobIndex
from DeepCache.prompts import Row


@pytest.fixture
def index():
    with JobIndex() as index:
        yield index


def add(index, *rows):
    """Adds rows, and returns their ids if all rows differ."""
    rows = [Row(f"line {number}", values) for number, values in enumerate(rows, start=1)]
    list(index.add_rows(rows))
    return [batch_row(row).id for row in rows]


def batches(index, size=1):
    return [[row.prompt for row in batch] for batch in index.batches(size)]


def test_all_rows_are_missing_at_first(index):
    values = {"prompt": "ein Kreis ★", "id": "a", "seed": 2**63 - 1, "negative": "n", "size": "64x72"}
    add(index, {"prompt": "x"}, {"prompt": "y"}, {"prompt": "z"}, values)
    assert batches(index) == [["x"], ["y"], ["z"], ["ein Kreis ★"]]
    assert batches(index, 2) == [["x", "y"], ["z"], ["ein Kreis ★"]]
    assert batches(index, 9) == [["x", "y", "z"], ["ein Kreis ★"]]
    assert list(index.batches(1))[-1] == [batch_row(Row("", values))]
    assert index.counts() == (4, 0, 0)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [
                {"prompt": "large", "size": 128},
                {"prompt": "small", "size": 64},
                {"prompt": "default"},
                {"prompt": "wide", "size": "128x64"},
                {"prompt": "high", "size": "64x128"},
                {"prompt": "default too"},
                {"prompt": "small too", "size": "64"},
            ],
            [["default", "default too"], ["small", "small too"], ["high"], ["wide"], ["large"]],
        ),
        (
            [{"prompt": "x"}, {"prompt": "y", "negative": "n"}, {"prompt": "z"}, {"prompt": "w", "negative": "m"}],
            [["x", "z"], ["y", "w"]],
        ),
        ([{"prompt": ""}, {"prompt": "x"}, {"prompt": ""}, {"prompt": "y"}], [["x", "y"], [""], [""]]),
    ],
    ids=["by size, the smallest first", "by negative prompts", "errors last and alone"],
)
def test_batches_contain_rows_that_can_be_generated_together(index, rows, expected):
    add(index, *rows)
    assert batches(index, 4) == expected


def test_identical_rows_get_different_ids_that_do_not_change(index):
    add(index, {"prompt": "x"}, {"prompt": "y"}, {"prompt": "x"}, {"prompt": "x"})
    row, another = Row("", {"prompt": "x"}), Row("", {"prompt": "y"})
    expected = [batch_row(row), batch_row(another), batch_row(row, 1), batch_row(row, 2)]
    assert [batch[0] for batch in index.batches(1)] == expected


def test_rows_with_a_record_and_a_complete_image_are_done(index):
    whole, gone, cut, other = add(index, *({"prompt": prompt} for prompt in ("whole", "gone", "cut", "other")))
    index.add_records(BatchRecord(row_id, bytes=100) for row_id in (whole, gone, cut))
    index.add_files([(whole, 100), (cut, 99), (other, 100), ("nobody's", 7)])
    index.forget(errors=False)
    assert batches(index) == [["gone"], ["cut"], ["other"]]
    assert index.counts() == (4, 1, 0)
    assert [record.id for record in index.records()] == [whole]


@pytest.mark.parametrize(("retry", "left"), [(False, [["x"]]), (True, [["x"], ["y"]])])
def test_failed_rows_are_missing_if_their_errors_are_forgotten(index, retry, left):
    _, failed = add(index, {"prompt": "x"}, {"prompt": "y"})
    index.add_records([BatchRecord(failed, error="why")])
    index.forget(errors=retry)
    assert batches(index) == left
    assert index.counts() == (2, 0, 0 if retry else 1)


def test_later_records_replace_earlier_ones(index):
    (row_id,) = add(index, {"prompt": "x"})
    index.add_records([BatchRecord(row_id, error="why")])
    index.add_records([BatchRecord(row_id, bytes=5)])
    index.add_files([(row_id, 5)])
    index.forget(errors=False)
    assert batches(index) == []
    assert index.counts() == (1, 1, 0)


def test_removed_rows_keep_their_images_and_lose_their_errors(index):
    add(index, {"prompt": "x"})
    index.add_records([BatchRecord("done", bytes=5), BatchRecord("failed", error="why")])
    index.add_files([("done", 5)])
    index.forget(errors=False)
    assert [record.id for record in index.records()] == ["done"]
    assert index.counts() == (1, 0, 0)


def test_records_have_the_order_of_the_rows(index):
    first, second = add(index, {"prompt": "x", "size": 128}, {"prompt": "y"})
    records = [
        BatchRecord("z", bytes=1, settings="{}"),
        BatchRecord(second, bytes=1, settings="{}", seconds=0.5, full_steps=3),
        BatchRecord("a", bytes=1, settings="[]"),
        BatchRecord(first, "★", "x", seed=2**63 - 1, bytes=1, settings="[]", width=64, height=64),
    ]
    index.add_records(records)
    index.add_files((record.id, 1) for record in records)
    index.forget(errors=False)
    assert list(index.records()) == [records[3], records[1], records[2], records[0]]


def test_records_that_are_added_during_the_iteration_do_not_change_it(index):
    prompts = [str(number) for number in range(5000)]
    ids = add(index, *({"prompt": prompt} for prompt in prompts))
    taken = []
    for row_id, (row,) in zip(ids, index.batches(1), strict=True):
        index.add_records([BatchRecord(row_id, bytes=1)])
        taken.append(row.prompt)
    assert taken == prompts
    assert index.counts() == (5000, 5000, 0)


def test_thousands_of_rows(index):
    rows = (Row("", {"prompt": str(number % 900)}) for number in range(2500))
    assert list(index.add_rows(rows)) == [1000, 2000, 2500]
    found = list(index.batches(64))
    assert [len(batch) for batch in found] == [64] * 39 + [4]
    assert len({row.id for batch in found for row in batch}) == 2500


def test_nothing_stays_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with JobIndex() as index:
        assert list(index.add_rows([Row("line 1", {"prompt": "any"})])) == [1]
        # An open file can be removed, except on Windows. The process may end by kill -9.
        assert os.name == "nt" or list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(OSError, match=r"temporary folder .* disk is full"), JobIndex():
        raise sqlite3.OperationalError("database or disk is full")
    assert list(Path(tmp_path).iterdir()) == []
