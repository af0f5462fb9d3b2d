"""Formats values for messages and tables."""

from __future__ import annotations

from reprlib import Repr

__all__ = ["format_bytes", "shortened", "shown"]

_REPR = Repr()
_REPR.maxstring = 120


def shown(value: object) -> str:
    """The `repr` of a value, cut where it is long or deeply nested."""
    return _REPR.repr(value)


def shortened(text: str, most: int = 300) -> str:
    """The text, cut to `most` characters with an ellipsis.

    Example:
        >>> shortened("a red circle left of a blue square", most=12)
        'a red circl…'
    """
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def format_bytes(count: float) -> str:
    """A number of bytes with three digits and a binary unit.

    Example:
        >>> format_bytes(98304), format_bytes(0), format_bytes(5 * 2**30)
        ('96 KiB', '0 B', '5 GiB')
    """
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:  # at most three digits
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"
