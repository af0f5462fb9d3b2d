"""One prompt of a prompt set."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Prompt"]


@dataclass(frozen=True)
class Prompt:
    """One prompt of a prompt set.

    Args:
        text: what to draw.
        id: what the file calls it, such as COCO's image id; where it has no name, its number in the file, from 1. A
            file may give several prompts the same one.
        category: what the file files it under, such as `Animals` in PartiPrompts; empty where it says nothing.
    """

    text: str
    id: str
    category: str = ""
