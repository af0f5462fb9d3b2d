"""In what the settings of a batch differ from those that its folder was begun with."""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import Repr
from typing import Any

__all__ = ["differences"]

_MOST = 4
_SHORTENED = Repr()
_SHORTENED.maxstring = _SHORTENED.maxother = 80


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What differs, in words; an empty string where nothing does.

    Args:
        there: the settings that the folder was begun with.
        here: those that are asked for.

    Example:
        >>> differences({"steps": 50, "cache": {"interval": 3}}, {"steps": 20, "cache": {"interval": 3}})
        'steps is 50 there and 20 here'
    """
    before, now = _flat(there), _flat(here)
    changed = [
        f"{name} is {_SHORTENED.repr(before.get(name))} there and {_SHORTENED.repr(now.get(name))} here"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    more = len(changed) - _MOST
    return "; ".join(changed[:_MOST]) + (f"; and {more} more" if more > 0 else "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            # As JSON gives it back.
            found[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return found
