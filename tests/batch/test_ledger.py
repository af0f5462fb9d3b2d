"""What there is to do, of what is asked for and what is there."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from pathlib import Path

import pytest

from DeepCache.batch import BatchRecord, batch_row
from DeepCache.batch.ledger import Ledger
from DeepCache.prompts import Row


@pytest.fixture
def ledger():
    with Ledger() as ledger:
        yield ledger


def enter(ledger, *rows):
    """Enters rows and gives their ids, which are those of rows that differ from each other."""
    rows = [Row(f"line {number}", values) for number, values in enumerate(rows, start=1)]
    list(ledger.enter_rows(rows))
    return [batch_row(row).id for row in rows]


def prompts(ledger, size=1):
    return [[row.prompt for row in batch] for batch in ledger.batches(size)]


def test_all_rows_are_to_be_done_in_a_new_folder(ledger):
    enter(ledger, {"prompt": "x"}, {"prompt": "y"}, {"prompt": "z"})
    ledger.settle(retry_errors=False)
    assert prompts(ledger) == [["x"], ["y"], ["z"]]
    assert prompts(ledger, 2) == [["x", "y"], ["z"]]
    assert prompts(ledger, 9) == [["x", "y", "z"]]
    assert (ledger.rows, ledger.done, ledger.failed) == (3, 0, 0)


def test_rows_are_the_ones_that_were_asked_for(ledger):
    values = {"prompt": "ein Kreis ★", "id": "a", "seed": 2**63 - 1, "negative": "n", "size": "64x72"}
    enter(ledger, values)
    ledger.settle(retry_errors=False)
    assert list(ledger.batches(1)) == [[batch_row(Row("", values))]]


def test_only_rows_of_the_same_size_are_drawn_together_and_small_ones_first(ledger):
    enter(
        ledger,
        {"prompt": "large", "size": 128},
        {"prompt": "small", "size": 64},
        {"prompt": "own"},
        {"prompt": "wide", "size": "128x64"},
        {"prompt": "high", "size": "64x128"},
        {"prompt": "own too"},
        {"prompt": "small too", "size": "64"},
    )
    ledger.settle(retry_errors=False)
    assert prompts(ledger, 4) == [["own", "own too"], ["small", "small too"], ["high"], ["wide"], ["large"]]


def test_rows_with_a_negative_prompt_are_drawn_by_themselves(ledger):
    enter(ledger, {"prompt": "x"}, {"prompt": "y", "negative": "n"}, {"prompt": "z"}, {"prompt": "w", "negative": "m"})
    ledger.settle(retry_errors=False)
    assert prompts(ledger, 4) == [["x", "z"], ["y", "w"]]


def test_wrong_rows_come_last_and_alone(ledger):
    enter(ledger, {"prompt": ""}, {"prompt": "x"}, {"prompt": ""}, {"prompt": "y"})
    ledger.settle(retry_errors=False)
    assert prompts(ledger, 4) == [["x", "y"], [""], [""]]


def test_rows_that_are_the_same_get_different_ids_that_stay(ledger):
    enter(ledger, {"prompt": "x"}, {"prompt": "y"}, {"prompt": "x"}, {"prompt": "x"})
    ledger.settle(retry_errors=False)
    row, another = Row("", {"prompt": "x"}), Row("", {"prompt": "y"})
    assert [batch[0] for batch in ledger.batches(1)] == [
        batch_row(row),
        batch_row(another),
        batch_row(row, 1),
        batch_row(row, 2),
    ]


def test_rows_that_are_drawn_and_whose_picture_is_whole_are_done(ledger):
    whole, gone, cut, other = enter(ledger, *({"prompt": prompt} for prompt in ("whole", "gone", "cut", "other")))
    ledger.enter_records(BatchRecord(row_id, bytes=100) for row_id in (whole, gone, cut))
    ledger.enter_files([(whole, 100), (cut, 99), (other, 100), ("nobody's", 7)])
    ledger.settle(retry_errors=False)
    assert prompts(ledger) == [["gone"], ["cut"], ["other"]]
    assert (ledger.rows, ledger.done, ledger.failed) == (4, 1, 0)
    assert [record.id for record in ledger.records()] == [whole]


@pytest.mark.parametrize(("retry", "left"), [(False, [["x"]]), (True, [["x"], ["y"]])])
def test_failed_rows_are_tried_again_if_asked_for(ledger, retry, left):
    _, failed = enter(ledger, {"prompt": "x"}, {"prompt": "y"})
    ledger.enter_records([BatchRecord(failed, error="why")])
    ledger.settle(retry)
    assert prompts(ledger) == left
    assert ledger.failed == (0 if retry else 1)


def test_later_record_takes_the_place_of_an_earlier_one(ledger):
    (row_id,) = enter(ledger, {"prompt": "x"})
    ledger.enter_records([BatchRecord(row_id, error="why")])
    ledger.enter_records([BatchRecord(row_id, bytes=5)])
    ledger.enter_files([(row_id, 5)])
    ledger.settle(retry_errors=False)
    assert prompts(ledger) == []
    assert (ledger.done, ledger.failed) == (1, 0)


def test_of_rows_that_are_no_longer_asked_for_pictures_stay_and_failures_do_not(ledger):
    enter(ledger, {"prompt": "x"})
    ledger.enter_records([BatchRecord("drawn", bytes=5), BatchRecord("failed", error="why")])
    ledger.enter_files([("drawn", 5)])
    ledger.settle(retry_errors=False)
    assert [record.id for record in ledger.records()] == ["drawn"]
    assert (ledger.rows, ledger.done, ledger.failed) == (1, 0, 0)


def test_records_come_back_in_the_order_of_the_rows(ledger):
    first, second = enter(ledger, {"prompt": "x", "size": 128}, {"prompt": "y"})
    records = [
        BatchRecord("z", bytes=1, settings="{}"),
        BatchRecord(second, bytes=1, settings="{}", seconds=0.5, full_steps=3),
        BatchRecord("a", bytes=1, settings="[]"),
        BatchRecord(first, "★", "x", seed=2**63 - 1, bytes=1, settings="[]", width=64, height=64),
    ]
    ledger.enter_records(records)
    ledger.enter_files((record.id, 1) for record in records)
    ledger.settle(retry_errors=False)
    assert list(ledger.records()) == [records[3], records[1], records[2], records[0]]


def test_what_is_entered_while_batches_are_taken_changes_none_of_them(ledger):
    ids = enter(ledger, {"prompt": "x"}, {"prompt": "y"}, {"prompt": "z"})
    ledger.settle(retry_errors=False)
    taken = []
    for row_id, (row,) in zip(ids, ledger.batches(1), strict=True):
        ledger.enter_records([BatchRecord(row_id, bytes=1)])
        taken.append(row.prompt)
    assert taken == ["x", "y", "z"]
    assert ledger.done == 3


def test_thousands_of_rows(ledger):
    rows = (Row("", {"prompt": str(number % 900)}) for number in range(2500))
    assert list(ledger.enter_rows(rows)) == [1000, 2000, 2500]
    ledger.settle(retry_errors=False)
    batches = list(ledger.batches(64))
    assert [len(batch) for batch in batches] == [64] * 39 + [4]
    assert len({row.id for batch in batches for row in batch}) == 2500


def test_nothing_stays_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Ledger() as ledger:
        assert list(ledger.enter_rows([Row("line 1", {"prompt": "any"})])) == [1]
        # Not even while it is used, where a file can be removed that is open: it may end by kill -9.
        assert os.name == "nt" or list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_told_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(OSError, match=r"temporary folder .* disk is full"), Ledger():
        raise sqlite3.OperationalError("database or disk is full")
    assert list(Path(tmp_path).iterdir()) == []
