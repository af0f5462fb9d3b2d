"""Reproducible samples of prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

_Item = TypeVar("_Item")


def sample_prompts(prompts: Sequence[_Item], count: int, seed: int) -> tuple[_Item, ...]:
    """Samples prompts without replacement, in their original order.

    The positions depend on the number of prompts, `count` and `seed` alone. They are those of
    `random.Random(seed).sample`, which Python does not guarantee across versions but has never changed.

    Args:
        prompts: `Prompt`s, texts or any other items.
        count: how many to sample.
        seed: the seed, >= 0.

    Raises:
        ValueError: `count` is not between 1 and the number of prompts, or `seed` is negative.

    Example:
        >>> sample_prompts(("a circle", "a star", "a ring", "a heart"), count=2, seed=0)
        ('a star', 'a heart')
    """
    if not 1 <= count <= len(prompts):
        raise ValueError(f"the number of prompts to sample must be between 1 and {len(prompts)}, got {count}")
    if seed < 0:
        # Python seeds with the absolute value, so -1 would sample the same as 1.
        raise ValueError(f"the seed of the sample must be >= 0, got {seed}")
    places = random.Random(seed).sample(range(len(prompts)), count)
    return tuple(prompts[place] for place in sorted(places))
