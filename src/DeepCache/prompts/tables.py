"""Prompts in tables: comma-separated values, and tab-separated ones such as PartiPrompts."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from DeepCache.prompts.rows import PROMPT_NAMES, Row, shown

if TYPE_CHECKING:
    from _csv import Reader

__all__ = ["comma_rows", "tab_rows"]

_COMMA_HINT = (
    "a value with a comma, a line break or double quotes in it stands between double quotes, those in it doubled"
)
_TAB_HINT = "a value cannot hold a tab or a line break"


def comma_rows(text: TextIO) -> Iterator[Row]:
    """The rows of comma-separated values below their header; a value may stand between double quotes.

    A row that has more or fewer values than the header is one with an error.

    Args:
        text: an open text, with its line ends as they are.

    Raises:
        ValueError: the quotes do not match, or the header names no prompt or a column twice.
    """
    reader = csv.reader(text, strict=True)
    return _rows(reader, str, _COMMA_HINT)


def tab_rows(text: TextIO) -> Iterator[Row]:
    """The rows of tab-separated values below their header.

    Double quotes are characters like any other, as in PartiPrompts, whose prompts hold them as they are. Only a value
    that stands in them the way spreadsheets write it, with every double quote inside doubled, loses them.

    A row that has more or fewer values than the header is one with an error.

    Args:
        text: an open text, with its line ends as they are.

    Raises:
        ValueError: the header names no prompt or a column twice, or a value is longer than any should be.
    """
    reader = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    return _rows(reader, _unquoted, _TAB_HINT)


def _rows(reader: Reader, value_of: Callable[[str], str], hint: str) -> Iterator[Row]:
    names: list[str] | None = None
    for line, fields in _lines(reader, hint):
        place = f"line {line}"
        values = [value_of(field) for field in fields]
        if names is None:
            names = _names(line, values)
        elif len(values) != len(names):
            error = (
                f"{place} must have as many values as the header has columns, {len(names)}, got {len(values)}; {hint}"
            )
            yield Row(place, {}, error)
        else:
            yield Row(place, dict(zip(names, values, strict=True)))


def _lines(reader: Reader, hint: str) -> Iterator[tuple[int, list[str]]]:
    """Every line that is not blank, with its number; of a row that goes over several lines that of the first."""
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"line {line} cannot be split into values ({error}): {hint}") from error
        if fields:
            yield line, fields


def _names(line: int, columns: list[str]) -> list[str]:
    names = [column.strip().lower() for column in columns]
    if not set(PROMPT_NAMES) & set(names):
        raise ValueError(
            f"line {line} must name the columns, one of them prompt, caption or text, got {shown(columns)}"
        )
    # Spreadsheets leave several columns without a name; nothing is read from those.
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise ValueError(f"line {line} names the column {shown(twice[0])} twice")
    return names


def _unquoted(value: str) -> str:
    inner = value[1:-1]
    if len(value) > 1 and value[0] == value[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return value
