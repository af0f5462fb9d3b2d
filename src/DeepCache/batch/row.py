"""Rows of a batch and their ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from DeepCache.generation.prompt_row import prompt_row, values_of
from DeepCache.prompts.rows import PROMPT_NAMES, Row

_ID_LENGTH = 24


@dataclass(frozen=True)
class BatchRow:
    """One row to generate.

    Args:
        id: a hash of all values of the row; the name of its image.
        row_id: its id in the prompt file; empty if it has none.
        prompt: the prompt.
        negative_prompt: the negative prompt; None for that of the settings.
        seed: the seed; None for one derived from the id and the seed of the settings.
        size: width and height in pixels; None for that of the settings.
        error: why the row cannot be used; empty if it can.
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
        """The inverse of `to_json`."""
        values = json.loads(text)
        size = values.pop("size")
        return cls(**values, size=None if size is None else tuple(size))

    def seed_for(self, seed: int) -> int:
        """The seed of the image; rows without one derive it from the `seed` of the settings."""
        if self.seed is not None:
            return self.seed
        return int(hashlib.sha256(f"{seed} {self.id}".encode()).hexdigest()[:8], 16)


def batch_row(row: Row, copy: int = 0) -> BatchRow:
    """Reads a row of a prompt file. A row that cannot be used has an `error`.

    Besides the prompt, a row may have an `id`, a `seed`, a `negative_prompt` (or `negative`), and a `size` such as
    `512x768` or a `width` and a `height`. Empty values are ignored.

    Args:
        row: the row of a prompt file.
        copy: the number of identical rows before it, which gives each of them its own id and seed.

    Example:
        >>> row = batch_row(Row("line 1", {"prompt": "a red circle", "size": "64"}))
        >>> row.id, row.size, row.seed_for(0)
        ('645dd11cbad9c7d55c40a802', (64, 64), 1597350890)
    """
    try:
        found = prompt_row(row)
    except ValueError as error:
        values = values_of(row)
        name = next((name for name in PROMPT_NAMES if name in values), "")
        row_id, prompt = _readable(values, "id"), _readable(values, name)
        return BatchRow(_hash([row.place, row_id, prompt, str(error), copy]), row_id, prompt, error=str(error))
    names = ("id", "prompt", "negative_prompt", "seed", "size")
    row_hash = _hash({name: getattr(found, name) for name in names} | {"copy": copy})
    return BatchRow(row_hash, found.id, found.prompt, found.negative_prompt, found.seed, found.size)


def _readable(values: Mapping[str, object], name: str) -> str:
    """A value of a wrong row for the manifest, where it can be written."""
    value = values.get(name)
    return str(value).encode(errors="replace").decode() if isinstance(value, str | int) else ""


def _hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_ID_LENGTH]
