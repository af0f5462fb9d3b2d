"""Parquet files: the columns that are read, and the errors of other files."""

from __future__ import annotations

import datetime
import re
import sys
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest

from DeepCache.prompts import Prompt, Row, read_prompt_set, read_rows


@pytest.fixture
def file(tmp_path):
    """Writes a Parquet file."""

    def write(columns, **more):
        table = columns if isinstance(columns, pyarrow.Table) else pyarrow.table(columns)
        path = tmp_path / "p.parquet"
        pyarrow.parquet.write_table(table, path, **more)
        return path

    return write


def refused(path, message):
    with pytest.raises(ValueError, match=re.escape(f"cannot read the prompt file {str(path)!r}: {message}")):
        list(read_rows(path))


def test_prompts_ids_and_categories_are_read(file):
    path = file({"Prompt": ["one", " two "], "ID": ["a", None], "CATEGORY": [3, None]})
    assert read_prompt_set(path) == (Prompt("one", "a", "3"), Prompt("two", "2"))
    assert read_prompt_set(path.rename(path.with_suffix(".PARQUET")))[0] == Prompt("one", "a", "3")


def test_columns_of_text_numbers_and_booleans_are_read(file):
    path = file(
        {
            " Prompt ": ["one", None],
            "large": pyarrow.array(["x", None], pyarrow.large_string()),
            "view": pyarrow.array(["y", None], pyarrow.string_view()),
            "kind": pyarrow.array(["Animals", "Animals"]).dictionary_encode(),
            "Seed": pyarrow.array([2**64 - 1, None], pyarrow.uint64()),
            "small": pyarrow.array([-1, 1], pyarrow.int8()),
            "scale": [7.5, None],
            "single": pyarrow.array([0.5, float("inf")], pyarrow.float32()),
            "on": [True, False],
            "none": pyarrow.nulls(2),
            "list": [["a"], ["b"]],
            "object": [{"prompt": "x"}, {"prompt": "y"}],
            "bytes": [b"x", b"y"],
            "day": [datetime.date(2024, 1, 1)] * 2,
            "a.b": ["dots", "too"],
            "a": [{"b": 1, "c": 2}, None],
        }
    )
    first, second = read_rows(path)
    assert first == Row(
        "row 1",
        {
            "prompt": "one",
            "large": "x",
            "view": "y",
            "kind": "Animals",
            "seed": 2**64 - 1,
            "small": -1,
            "scale": 7.5,
            "single": 0.5,
            "on": True,
            "none": None,
            "a.b": "dots",
        },
    )
    assert second.place == "row 2"
    assert second.values["prompt"] is None
    assert second.values["single"] == float("inf")


def test_rows_are_numbered_over_row_groups_and_batches(file):
    path = file({"text": [f"prompt {number}" for number in range(1, 5001)]}, row_group_size=1500)
    for number, row in enumerate(read_rows(path), start=1):
        assert row == Row(f"row {number}", {"text": f"prompt {number}"})
    assert number == 5000


def test_several_columns_may_have_no_name(file):
    path = file(pyarrow.Table.from_arrays([pyarrow.array(["one"]), *[pyarrow.array([1])] * 2], ["prompt", "", ""]))
    assert read_prompt_set(path) == (Prompt("one", "1"),)


def test_tables_without_rows(file):
    path = file({"prompt": pyarrow.array([], pyarrow.string())})
    assert list(read_rows(path)) == []
    with pytest.raises(ValueError, match="contains no prompt: write a table with a column prompt, caption or text"):
        read_prompt_set(path)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["one", None], "row 2: the prompt must be text, got None"),
        ([1], "row 1: the prompt must be text, got 1"),
    ],
)
def test_missing_prompts_are_refused(file, prompts, message):
    path = file({"prompt": prompts})
    with pytest.raises(ValueError, match=re.escape(f"{str(path)!r}: {message}")):
        read_prompt_set(path)


def test_invalid_text_is_an_error_of_its_row(file):
    broken = pyarrow.array([b"one", b"\xff", b"three"]).view(pyarrow.string())
    path = file({"prompt": broken})
    assert list(read_rows(path)) == [
        Row("row 1", {"prompt": "one"}),
        Row("row 2", {}, "row 2 contains text that is not UTF-8"),
        Row("row 3", {"prompt": "three"}),
    ]
    with pytest.raises(ValueError, match=re.escape(f"{str(path)!r}: row 2 contains text that is not UTF-8")):
        read_prompt_set(path)


@pytest.mark.parametrize(
    ("names", "values", "message"),
    [
        (["id"], [1], "the table must have a column of text named prompt, caption or text, got ['id: int64']"),
        (
            ["prompt"],
            [["x"]],
            "the table must have a column of text named prompt, caption or text, got ['prompt: list<",
        ),
        (["prompt", "Prompt"], ["x", "y"], "the table has the column 'prompt' twice"),
        (["text", "id", "id"], ["x", 1, 2], "the table has the column 'id' twice"),
    ],
)
def test_wrong_columns_are_refused(file, names, values, message):
    refused(file(pyarrow.Table.from_arrays([pyarrow.array([value]) for value in values], names)), message)


def test_other_and_damaged_files_are_refused(file):
    path = file({"prompt": [f"prompt number {number}" for number in range(1000)]}, compression="snappy")
    content = path.read_bytes()
    for other in (b"", b"prompt\none\n", b"\xff" * 100, content[:-1], content[:-4] + b"PAR2", content[100:]):
        path.write_bytes(other)
        refused(path, "it is not a Parquet file, or it is damaged: ")
    path.write_bytes(content[:4] + bytes(500) + content[504:])
    refused(path, "it is not a Parquet file, or it is damaged: ")


def test_errors_of_the_system_are_not_reported_as_damage(file, monkeypatch):
    path = file({"prompt": ["one"]})

    class Failing:
        closed = False

        def __init__(self, *arguments, **named):
            raise TimeoutError("the store does not answer")

    monkeypatch.setattr("pyarrow.parquet.ParquetFile", Failing)
    with pytest.raises(OSError, match=f"^cannot read the prompt file {re.escape(repr(str(path)))}: the store does not"):
        next(read_rows(path))


def test_missing_pyarrow_is_reported(file, monkeypatch):
    path = file({"prompt": ["one"]})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        ImportError, match=r'^reading a \.parquet file requires pyarrow: pip install "DeepCache\[batch\]"$'
    ):
        next(read_rows(path))


def test_memory_does_not_grow_with_the_file(file):
    prompts = [f"a prompt that is like no other, {number}" for number in range(100_000)]
    path = file({"prompt": prompts}, row_group_size=len(prompts), use_dictionary=False, compression="none")
    assert path.stat().st_size > 3_000_000
    pool = pyarrow.default_memory_pool()
    before = most = pool.bytes_allocated()
    tracemalloc.start()
    try:
        for number, _ in enumerate(read_rows(path)):
            if number % 100 == 0:
                most = max(most, pool.bytes_allocated())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert number == 99_999
    assert most - before < 1_000_000
    assert peak < 1_500_000
