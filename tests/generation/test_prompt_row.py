"""Rows of prompt files."""

from __future__ import annotations

import pytest

from DeepCache.batch.row import batch_row
from DeepCache.generation import PromptRow, read_prompt_rows
from DeepCache.prompts import read_rows

TABLE = """prompt,seed,negative_prompt,size
a red circle,7,a star,72x64
a blue star,,,
"""


def test_empty_values_are_ignored(tmp_path):
    (tmp_path / "prompts.csv").write_text(TABLE, encoding="utf-8")
    assert read_prompt_rows(tmp_path / "prompts.csv") == (
        PromptRow("a red circle", negative_prompt="a star", seed=7, size=(72, 64)),
        PromptRow("a blue star"),
    )


def test_a_batch_reads_the_same_values(tmp_path):
    (tmp_path / "prompts.csv").write_text(TABLE, encoding="utf-8")
    batch = [batch_row(row) for row in read_rows(tmp_path / "prompts.csv")]
    rows = read_prompt_rows(tmp_path / "prompts.csv")
    for name in ("prompt", "negative_prompt", "seed", "size"):
        assert [getattr(row, name) for row in rows] == [getattr(row, name) for row in batch]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,seed\nx,-1\n", r"prompts.csv': line 2: the seed must be a whole number from 0 .*, got '-1'"),
        ("prompt,size\nx,big\n", r"prompts.csv': line 2: a size must be .*, got 'big'"),
        ("prompt,width\nx,64\n", r"prompts.csv': line 2: width and height must be two whole numbers >= 1"),
        ("prompt\n", r"prompts.csv' contains no prompt"),
    ],
)
def test_an_invalid_row_is_reported_with_its_line(tmp_path, content, message):
    (tmp_path / "prompts.csv").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_prompt_rows(tmp_path / "prompts.csv")
