"""One row of a batch: what to draw, and the id that stays with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from DeepCache.generation.prompt_row import prompt_row, values_of
from DeepCache.prompts.rows import PROMPT_NAMES, Row

__all__ = ["BatchRow", "batch_row"]

_ID_LENGTH = 24


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
    try:
        found = prompt_row(row)
    except ValueError as error:
        values = values_of(row)
        said = (_said(values, "id"), next((_said(values, name) for name in PROMPT_NAMES if name in values), ""))
        return BatchRow(_hash([row.place, *said, str(error), copy]), *said, error=str(error))
    asked = {
        "id": found.id,
        "prompt": found.prompt,
        "negative_prompt": found.negative_prompt,
        "seed": found.seed,
        "size": found.size,
        "copy": copy,
    }
    return BatchRow(_hash(asked), found.id, found.prompt, found.negative_prompt, found.seed, found.size)


def _said(values: Mapping[str, object], name: str) -> str:
    """What a row says, as far as it can be written down, for people who look for it."""
    value = values.get(name)
    return str(value).encode(errors="replace").decode() if isinstance(value, str | int) else ""


def _hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_ID_LENGTH]
