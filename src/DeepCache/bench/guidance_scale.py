"""A guidance scale in words."""

from __future__ import annotations

__all__ = ["guidance_in_words"]


def guidance_in_words(guidance: float | None) -> str:
    """What follows scheduler and steps where a group is named; nothing where the pipeline takes no guidance scale.

    Example:
        >>> guidance_in_words(7.5), guidance_in_words(2.0)
        (', guidance 7.5', ', guidance 2')
    """
    return "" if guidance is None else f", guidance {str(guidance).removesuffix('.0')}"
