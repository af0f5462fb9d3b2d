"""What all formats of prompt files have in common: rows with named values, which become prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import Repr

from DeepCache.prompts.prompt import Prompt

__all__ = ["PROMPT_NAMES", "Row", "check_text", "prompt_of", "shortened", "shown"]

PROMPT_NAMES = ("prompt", "caption", "text")
"""What the value with the prompt may be called; where there are several, the first of these is it."""

_SHORTENED = Repr()
_SHORTENED.maxstring = 120


@dataclass(frozen=True)
class Row:
    """One row of a prompt file, with everything that it says.

    Args:
        place: where it is in the file, such as `line 3`.
        values: its values by their names in lower case, as the file has them; empty where the row cannot be read.
        error: why the row cannot be read, with its place; empty where it can.
    """

    place: str
    values: Mapping[str, object]
    error: str = ""


def prompt_of(row: Row, number: int) -> Prompt:
    """The prompt in a row.

    Args:
        row: the row.
        number: which prompt of the file it is, from 1; it is the id where the row has none.

    Raises:
        ValueError: the row cannot be read or has no prompt, or one of its values cannot be used.
    """
    if row.error:
        raise ValueError(row.error)
    name = next((name for name in PROMPT_NAMES if name in row.values), None)
    if name is None:
        raise ValueError(f"{row.place} must have a 'prompt', 'caption' or 'text', got {shown(list(row.values))}")
    return Prompt(
        text=check_text(row.place, name, row.values[name]),
        id=_label(row, "id") or str(number),
        category=_label(row, "category"),
    )


def check_text(place: str, name: str, value: object) -> str:
    """A value that must be text and not empty, without the blanks around it.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, str):
        raise ValueError(f"{place}: the {name} must be text, got {shown(value)}")
    text = value.strip()
    if not text:
        raise ValueError(f"{place}: the {name} must not be empty")
    _check_characters(place, name, text)
    return text


def shown(value: object) -> str:
    """A value for a message, cut short where it is long or nested deeply."""
    return _SHORTENED.repr(value)


def shortened(text: str, most: int = 300) -> str:
    """A text of at most so many characters, with an ellipsis where there were more.

    Example:
        >>> shortened("a red circle left of a blue square", most=12)
        'a red circl…'
    """
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


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
    # JSON can spell halves of characters, which no tokenizer takes and no file holds.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: the {name} is not valid text: {shown(text)}") from error
