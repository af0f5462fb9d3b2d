"""Parquet: which columns are read, and what is said about files that cannot be."""

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


def test_prompts(file):
    path = file({"Prompt": ["one", " two "], "ID": ["a", None], "CATEGORY": [3, None]})
    assert read_prompt_set(path) == (Prompt("one", "a", "3"), Prompt("two", "2"))
    assert read_prompt_set(path.rename(path.with_suffix(".PARQUET")))[0] == Prompt("one", "a", "3")


def test_columns_with_one_value_a_row_are_read_and_others_are_left_out(file):
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


def test_columns_without_a_name_may_be_several(file):
    path = file(pyarrow.Table.from_arrays([pyarrow.array(["one"]), *[pyarrow.array([1])] * 2], ["prompt", "", ""]))
    assert read_prompt_set(path) == (Prompt("one", "1"),)


def test_a_table_without_rows(file):
    path = file({"prompt": pyarrow.array([], pyarrow.string())})
    assert list(read_rows(path)) == []
    with pytest.raises(ValueError, match="holds no prompt: write a table with a column prompt, caption or text"):
        read_prompt_set(path)


def test_prompts_that_are_none(file):
    path = file({"prompt": ["one", None]})
    with pytest.raises(ValueError, match=re.escape(f"{str(path)!r}: row 2: the prompt must be text, got None")):
        read_prompt_set(path)
    path = file({"prompt": [1]})
    with pytest.raises(ValueError, match=re.escape(f"{str(path)!r}: row 1: the prompt must be text, got 1")):
        read_prompt_set(path)


def test_text_that_is_none_ends_nothing(file):
    broken = pyarrow.array([b"one", b"\xff", b"three"]).view(pyarrow.string())
    path = file({"prompt": broken})
    assert list(read_rows(path)) == [
        Row("row 1", {"prompt": "one"}),
        Row("row 2", {}, "row 2 has text that is not UTF-8"),
        Row("row 3", {"prompt": "three"}),
    ]
    with pytest.raises(ValueError, match=re.escape(f"{str(path)!r}: row 2 has text that is not UTF-8")):
        read_prompt_set(path)


@pytest.mark.parametrize(
    ("names", "values", "message"),
    [
        (["id"], [1], "it must have a column prompt, caption or text that holds text, got ['id: int64']"),
        (["prompt"], [["x"]], "it must have a column prompt, caption or text that holds text, got ['prompt: list<"),
        (["prompt", "Prompt"], ["x", "y"], "it has the column 'prompt' twice"),
        (["text", "id", "id"], ["x", 1, 2], "it has the column 'id' twice"),
    ],
)
def test_columns_that_are_wrong(file, names, values, message):
    refused(file(pyarrow.Table.from_arrays([pyarrow.array([value]) for value in values], names)), message)


def test_what_is_no_parquet(file):
    path = file({"prompt": [f"prompt number {number}" for number in range(1000)]}, compression="snappy")
    content = path.read_bytes()
    for other in (b"", b"prompt\none\n", b"\xff" * 100, content[:-1], content[:-4] + b"PAR2", content[100:]):
        path.write_bytes(other)
        refused(path, "it is no Parquet file, or a damaged one: ")
    path.write_bytes(content[:4] + bytes(500) + content[504:])
    refused(path, "it is no Parquet file, or a damaged one: ")


def test_no_file():
    with pytest.raises(FileNotFoundError, match=r"^there is no prompt file 'nowhere\.parquet'$"):
        next(read_rows("nowhere.parquet"))


def test_an_error_of_the_system_is_not_taken_for_a_damaged_file(file, monkeypatch):
    path = file({"prompt": ["one"]})

    class Failing:
        closed = False

        def __init__(self, *arguments, **named):
            raise TimeoutError("the store does not answer")

    monkeypatch.setattr("pyarrow.parquet.ParquetFile", Failing)
    with pytest.raises(OSError, match=f"^cannot read the prompt file {re.escape(repr(str(path)))}: the store does not"):
        next(read_rows(path))


def test_without_pyarrow(file, monkeypatch):
    path = file({"prompt": ["one"]})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r'^a \.parquet file takes pyarrow: pip install "DeepCache\[batch\]"$'):
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
