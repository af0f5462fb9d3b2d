"""A few prompts of many, the same ones every time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["sample_prompts"]

_Item = TypeVar("_Item")


def sample_prompts(prompts: Sequence[_Item], count: int, seed: int) -> tuple[_Item, ...]:
    """Draws prompts at random, none twice; they stay in the order that they had.

    The same number of prompts, count and seed choose the same places on every machine and in every process. They are
    those of `random.Random(seed).sample`, which Python does not promise to keep from version to version, but has kept.

    Args:
        prompts: `Prompt`s, texts or anything else in an order.
        count: how many to draw.
        seed: what the choice depends on, 0 or more.

    Raises:
        ValueError: there are fewer prompts than that, count is below 1, or seed is below 0.

    Example:
        >>> sample_prompts(("a circle", "a star", "a ring", "a heart"), count=2, seed=0)
        ('a star', 'a heart')
    """
    if not 1 <= count <= len(prompts):
        raise ValueError(f"the prompts to sample must be from 1 to the {len(prompts)} that there are, got {count}")
    if seed < 0:
        # Python seeds with the absolute value, so -1 would choose what 1 does.
        raise ValueError(f"the seed to sample with must be 0 or more, got {seed}")
    places = random.Random(seed).sample(range(len(prompts)), count)
    return tuple(prompts[place] for place in sorted(places))
