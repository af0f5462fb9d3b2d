"""Rows of a prompt file: a prompt with the settings of its image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from DeepCache.generation.settings import LARGEST_SEED, parse_size
from DeepCache.prompts.reading import read_prompt_set, read_rows
from DeepCache.prompts.rows import PROMPT_NAMES, Row, check_text, prompt_of
from DeepCache.text import shown

__all__ = ["PromptRow", "prompt_row", "read_prompt_rows", "values_of"]

_NEGATIVE_NAMES = ("negative_prompt", "negative")


@dataclass(frozen=True)
class PromptRow:
    """A row of a prompt file.

    Args:
        prompt: its prompt.
        id: its id; empty if it has none.
        negative_prompt: what the image should not show; None if it has none.
        seed: its seed; None if it has none.
        size: width and height in pixels; None if it has none.
    """

    prompt: str
    id: str = ""
    negative_prompt: str | None = None
    seed: int | None = None
    size: tuple[int, int] | None = None


def read_prompt_rows(path: str | Path) -> tuple[PromptRow, ...]:
    """Reads the rows of a prompt file, in its order.

    Args:
        path: the file, or a URL that fsspec supports, such as `s3://bucket/prompts.jsonl`.

    Raises:
        ImportError: a package for the format or the URL is not installed.
        OSError: the file does not exist or cannot be read.
        ValueError: the file does not have the format of its extension or has no prompt, or a row has an invalid value.

    Example:
        >>> _ = Path("prompts.csv").write_text("prompt,seed\\na red circle,7\\na blue star,\\n", encoding="utf-8")
        >>> [row.seed for row in read_prompt_rows("prompts.csv")]
        [7, None]
    """
    try:
        rows = tuple(map(prompt_row, read_rows(path)))
    except ValueError as error:
        raise ValueError(f"cannot read the prompt file {str(path)!r}: {error}") from error
    if not rows:
        # Raises the error of a file without prompts.
        read_prompt_set(path)
    return rows


def prompt_row(row: Row) -> PromptRow:
    """Parses a row: its prompt and, optionally, an `id`, a `seed`, a `negative_prompt` (or `negative`), and a `size`
    such as `512x768` or a `width` and a `height`. Empty values are ignored."""
    values, place = values_of(row), row.place
    found = prompt_of(Row(place, values, row.error), 0)
    negative = next((name for name in _NEGATIVE_NAMES if name in values), None)
    return PromptRow(
        prompt=found.text,
        id="" if values.get("id") is None else found.id,
        negative_prompt=None if negative is None else check_text(place, negative, values[negative]),
        seed=_seed(place, values),
        size=_size(place, values),
    )


def values_of(row: Row) -> dict[str, object]:
    """The values of a row that are not empty, and the prompt even if it is."""
    return {
        name: value
        for name, value in row.values.items()
        if name in PROMPT_NAMES or not (value is None or (isinstance(value, str) and not value.strip()))
    }


def _seed(place: str, values: Mapping[str, object]) -> int | None:
    value = values.get("seed")
    if value is None:
        return None
    seed = _whole_number(value)
    if seed is None or not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"{place}: the seed must be a whole number from 0 to 2**63 - 1, got {shown(value)}")
    return seed


def _size(place: str, values: Mapping[str, object]) -> tuple[int, int] | None:
    if "size" in values:
        number = _whole_number(values["size"])
        try:
            return parse_size(str(values["size"] if number is None else number))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    sides = [values.get(name) for name in ("width", "height")]
    if sides == [None, None]:
        return None
    width, height = map(_whole_number, sides)
    if width is None or height is None or width < 1 or height < 1:
        raise ValueError(
            f"{place}: width and height must be two whole numbers >= 1, got {' and '.join(map(shown, sides))}"
        )
    return width, height


def _whole_number(value: object) -> int | None:
    """The whole number that a value stands for; None if it is not one. Tables have text, and those with gaps floats."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        return int(value)
    return None
