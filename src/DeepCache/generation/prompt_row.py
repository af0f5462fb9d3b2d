"""What a row of a prompt file asks for beside its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from DeepCache.generation.settings import parse_size
from DeepCache.prompts.reading import read_prompt_set, read_rows
from DeepCache.prompts.rows import PROMPT_NAMES, Row, check_text, prompt_of, shown

__all__ = ["PromptRow", "prompt_row", "read_prompt_rows", "values_of"]

_NEGATIVE_NAMES = ("negative_prompt", "negative")
_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class PromptRow:
    """What a row of a prompt file asks for.

    Args:
        prompt: what to generate.
        id: what the file calls the row; empty where it does not say.
        negative_prompt: what not to show; None where it does not say.
        seed: its seed; None where it does not say.
        size: width and height in pixels; None where it does not say.
    """

    prompt: str
    id: str = ""
    negative_prompt: str | None = None
    seed: int | None = None
    size: tuple[int, int] | None = None


def read_prompt_rows(path: str | Path) -> tuple[PromptRow, ...]:
    """What the rows of a prompt file ask for, in its order.

    Args:
        path: the file, or a URL that fsspec knows, such as `s3://bucket/prompts.jsonl`.

    Raises:
        ImportError: a package for the format or the URL is not installed.
        OSError: the file does not exist or cannot be read.
        ValueError: the file is not what its ending says or holds no prompt, or a value of a row cannot be used.

    Example:
        >>> _ = Path("prompts.csv").write_text("prompt,seed\\na red circle,7\\na blue star,\\n", encoding="utf-8")
        >>> [row.seed for row in read_prompt_rows("prompts.csv")]
        [7, None]
    """
    rows = []
    for row in read_rows(path):
        try:
            rows.append(prompt_row(row))
        except ValueError as error:
            raise ValueError(f"cannot read the prompt file {str(path)!r}: {error}") from error
    if not rows:
        # Of a file without a prompt it says what such a file holds.
        read_prompt_set(path)
    return tuple(rows)


def prompt_row(row: Row) -> PromptRow:
    """What a row asks for.

    Beside the prompt a row may have an `id`, a `seed`, a `negative_prompt` (or `negative`), and a `size` such as
    `512x768` or a `width` and a `height`; whatever is empty counts as not there.

    Args:
        row: a row of a prompt file.

    Raises:
        ValueError: the row cannot be read or has no prompt, or one of its values cannot be used.

    Example:
        >>> prompt_row(Row("line 1", {"prompt": "a red circle", "size": "64"})).size
        (64, 64)
    """
    values = values_of(row)
    found = prompt_of(Row(row.place, values, row.error), 0)
    return PromptRow(
        prompt=found.text,
        id="" if values.get("id") is None else found.id,
        negative_prompt=_negative(row.place, values),
        seed=_seed(row.place, values),
        size=_size(row.place, values),
    )


def values_of(row: Row) -> dict[str, object]:
    """The values of a row that are not empty, and the prompt whatever it is."""
    return {name: value for name, value in row.values.items() if name in PROMPT_NAMES or not _is_empty(value)}


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _negative(place: str, values: Mapping[str, object]) -> str | None:
    name = next((name for name in _NEGATIVE_NAMES if name in values), None)
    if name is None:
        return None
    return check_text(place, name, values[name])


def _seed(place: str, values: Mapping[str, object]) -> int | None:
    value = values.get("seed")
    if value is None:
        return None
    seed = _whole_number(value)
    if seed is None or not 0 <= seed <= _LARGEST_SEED:
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
    width, height = (None if side is None else _whole_number(side) for side in sides)
    if width is None or height is None or width < 1 or height < 1:
        raise ValueError(
            f"{place}: width and height must be two whole numbers from 1, got {' and '.join(map(shown, sides))}"
        )
    return width, height


def _whole_number(value: object) -> int | None:
    """The whole number that a file means; None where it means none. Tables hold text, and those with gaps floats."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        return int(value)
    return None
