"""One row of a batch: what to draw, and the id that stays with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from DeepCache.generation.settings import parse_size
from DeepCache.prompts.rows import PROMPT_NAMES, Row, check_text, prompt_of, shown

__all__ = ["BatchRow", "batch_row"]

_ID_LENGTH = 24
_NEGATIVE_NAMES = ("negative_prompt", "negative")
_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class BatchRow:
    """One row to draw.

    Args:
        id: a hash of all that the row says, which names its picture.
        row_id: what the file calls the row; empty where it does not say.
        prompt: what to draw.
        negative_prompt: what not to show; None for that of the settings.
        seed: its seed; None for one made of the id and the seed of the settings.
        size: width and height in pixels; None for that of the settings.
        error: why the row cannot be drawn, in which case the rest is what can be read of it; else empty.
    """

    id: str
    row_id: str = ""
    prompt: str = ""
    negative_prompt: str | None = None
    seed: int | None = None
    size: tuple[int, int] | None = None
    error: str = ""

    def to_json(self) -> str:
        """The row as JSON."""
        return json.dumps(vars(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> BatchRow:
        """The row that `to_json` made this of."""
        values = json.loads(text)
        size = values.pop("size")
        return cls(**values, size=None if size is None else tuple(size))

    def seed_for(self, seed: int) -> int:
        """The seed to draw with.

        Args:
            seed: the seed of the settings, on which rows without one of their own depend.
        """
        if self.seed is not None:
            return self.seed
        return int(hashlib.sha256(f"{seed} {self.id}".encode()).hexdigest()[:8], 16)


def batch_row(row: Row, copy: int = 0) -> BatchRow:
    """What a row of a prompt file asks for. What cannot be used is told in its `error`.

    Beside the prompt a row may have an `id`, a `seed`, a `negative_prompt` (or `negative`), and a `size` such as
    `512x768` or a `width` and a `height`; whatever is empty counts as not there.

    Args:
        row: a row of a prompt file.
        copy: how many rows with the same values came before it; such rows differ in their ids, and so in their seeds.

    Example:
        >>> row = batch_row(Row("line 1", {"prompt": "a red circle", "size": "64"}))
        >>> row.id, row.size, row.seed_for(0)
        ('645dd11cbad9c7d55c40a802', (64, 64), 1597350890)
    """
    values = {name: value for name, value in row.values.items() if name in PROMPT_NAMES or not _is_empty(value)}
    try:
        if row.error:
            raise ValueError(row.error)
        found = prompt_of(Row(row.place, values), 0)
        negative = _negative(row.place, values)
        seed = _seed(row.place, values)
        size = _size(row.place, values)
    except ValueError as error:
        said = (_said(values, "id"), next((_said(values, name) for name in PROMPT_NAMES if name in values), ""))
        return BatchRow(_hash([row.place, *said, str(error), copy]), *said, error=str(error))
    row_id = "" if values.get("id") is None else found.id
    asked = {
        "id": row_id,
        "prompt": found.text,
        "negative_prompt": negative,
        "seed": seed,
        "size": size,
        "copy": copy,
    }
    return BatchRow(_hash(asked), row_id, found.text, negative, seed, size)


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _said(values: Mapping[str, object], name: str) -> str:
    """What a row says, as far as it can be written down, for people who look for it."""
    value = values.get(name)
    return str(value).encode(errors="replace").decode() if isinstance(value, str | int) else ""


def _hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_ID_LENGTH]


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
