"""Prompts as JSON Lines: one JSON object, or one JSON string, a line."""

from __future__ import annotations

from collections.abc import Iterator
from json import JSONDecodeError
from typing import TextIO

from DeepCache.prompts.rows import Row, shown
from DeepCache.prompts.strict_json import parse_json

__all__ = ["json_line_rows"]


def json_line_rows(text: TextIO) -> Iterator[Row]:
    """One row for each line; blank lines are skipped. Upper and lower case are the same in keys.

    A line that is no JSON, neither an object nor a string, or has a key twice is a row with an error.

    Args:
        text: an open text whose lines end at a line feed only; the line ends of Unicode may stand in a JSON string as
            they are.
    """
    for number, line in enumerate(text, start=1):
        if line.strip():
            yield _row(number, line.removesuffix("\n"))


def _row(number: int, line: str) -> Row:
    place = f"line {number}"
    try:
        return Row(place, _values(number, line))
    except ValueError as error:
        return Row(place, {}, error=str(error))


def _values(number: int, line: str) -> dict[str, object]:
    try:
        found = parse_json(line)
    except JSONDecodeError as error:
        raise ValueError(f"line {number} is no JSON: {error.msg} (character {error.colno})") from error
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error
    if isinstance(found, str):
        return {"prompt": found}
    if not isinstance(found, dict):
        raise ValueError(f"line {number} must be a JSON object or a JSON string, got {shown(found)}")
    values: dict[str, object] = {}
    for key, value in found.items():
        name = key.strip().lower()
        if name in values:
            raise ValueError(f"line {number} has the key {shown(name)} twice")
        values[name] = value
    return values
