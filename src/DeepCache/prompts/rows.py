"""Rows of prompt files, and the prompts in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from DeepCache.text import shown

PROMPT_NAMES = ("prompt", "caption", "text")
"""The names of the value that holds the prompt; the first of them that is present counts."""


@dataclass(frozen=True)
class Prompt:
    """One prompt of a prompt set.

    Args:
        text: the prompt.
        id: its id in the file, such as COCO's image id, which need not be unique; without one its number, from 1.
        category: its category in the file, such as `Animals` in PartiPrompts; empty if there is none.
    """

    text: str
    id: str
    category: str = ""


@dataclass(frozen=True)
class Row:
    """One row of a prompt file with all its values.

    Args:
        place: its place in the file, such as `line 3`.
        values: its values by their names in lower case, as they are in the file; empty if the row cannot be read.
        error: why the row cannot be read, including its place; empty if it can.
    """

    place: str
    values: Mapping[str, object]
    error: str = ""


def prompt_of(row: Row, number: int) -> Prompt:
    """The prompt of a row, which is prompt `number` of its file. A row without a usable prompt is a `ValueError`."""
    if row.error:
        raise ValueError(row.error)
    name = next((name for name in PROMPT_NAMES if name in row.values), None)
    if name is None:
        raise ValueError(f"{row.place} must have a 'prompt', 'caption' or 'text', got {shown(list(row.values))}")
    text = check_text(row.place, name, row.values[name])
    return Prompt(text, _label(row, "id") or str(number), _label(row, "category"))


def check_text(place: str, name: str, value: object) -> str:
    """A value that must be text and not empty, without surrounding whitespace."""
    if not isinstance(value, str):
        raise ValueError(f"{place}: the {name} must be text, got {shown(value)}")
    text = value.strip()
    if not text:
        raise ValueError(f"{place}: the {name} must not be empty")
    _check_characters(place, name, text)
    return text


def _label(row: Row, name: str) -> str:
    value = row.values.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{row.place}: the {name} must be text or a whole number, got {shown(value)}")
    label = str(value).strip()
    _check_characters(row.place, name, label)
    return label


def _check_characters(place: str, name: str, text: str) -> None:
    # JSON can spell lone surrogates, which tokenizers and files refuse.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: the {name} is not valid text: {shown(text)}") from error
