"""Differences between the settings of two runs."""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import Repr
from typing import Any

__all__ = ["settings_differences"]

_MOST = 4
_SHORTENED = Repr()
_SHORTENED.maxstring = _SHORTENED.maxother = 80


def settings_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describes how the settings of a run differ from those of an earlier one; empty if they do not.

    Example:
        >>> settings_differences({"steps": 50, "cache": {"interval": 3}}, {"steps": 20, "cache": {"interval": 3}})
        'steps was 50 and is 20 now'
    """
    before, now = _flat(before), _flat(now)
    changed = [
        f"{name} was {_SHORTENED.repr(before.get(name))} and is {_SHORTENED.repr(now.get(name))} now"
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
            # JSON has lists alone.
            found[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return found
