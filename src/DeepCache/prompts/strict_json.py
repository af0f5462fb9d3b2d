"""JSON from a stranger: whatever is wrong with it is a `ValueError`."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from DeepCache.prompts.rows import shown

__all__ = ["parse_json"]


def parse_json(text: str) -> Any:
    """The value that is written in JSON.

    Raises:
        ValueError: the text is no JSON, an object has a key twice, a number has too many digits, or values are nested
            too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_whole_number)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        # Without the cause: its traceback is as long as the nesting is deep.
        raise ValueError("its values are nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"an object has the key {shown(twice)} twice")
    return values


def _whole_number(digits: str) -> int:
    try:
        return int(digits)
    except ValueError as error:
        raise ValueError(f"a number of {len(digits)} digits is too long") from error
