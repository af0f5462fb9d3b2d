"""Prompts that come with the package."""

from __future__ import annotations

from importlib.resources import files
from io import StringIO

from DeepCache.models.registry import named_model
from DeepCache.prompts.plain_text import text_rows
from DeepCache.prompts.prompt import Prompt
from DeepCache.prompts.rows import prompt_of

__all__ = ["BUNDLED", "bundled_prompt_set", "bundled_prompts"]

BUNDLED = ("shapes", "general")
"""The prompt sets that come with the package: in the words of the shapes model, and for models that draw anything."""


def bundled_prompt_set(name: str) -> tuple[Prompt, ...]:
    """A prompt set that comes with the package.

    Args:
        name: one of `BUNDLED`.

    Raises:
        ValueError: there is none of that name.

    Example:
        >>> bundled_prompt_set("general")[5]
        Prompt(text='two foxes asleep in fresh snow', id='6', category='')
    """
    if name not in BUNDLED:
        raise ValueError(f"the prompt sets that come with DeepCache are {' and '.join(BUNDLED)}, got {name!r}")
    text = (files("DeepCache.prompts") / f"{name}.txt").read_text(encoding="utf-8")
    return tuple(prompt_of(row, number) for number, row in enumerate(text_rows(StringIO(text)), start=1))


def bundled_prompts(model: str) -> tuple[str, ...]:
    """Prompts that a model can draw: of its own for one that comes with the package, general ones for all others.

    Example:
        >>> len(bundled_prompts("shapes")), len(bundled_prompts("owner/name"))
        (40, 64)
    """
    return tuple(prompt.text for prompt in bundled_prompt_set("shapes" if named_model(model) else "general"))
