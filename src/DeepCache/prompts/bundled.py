"""The prompt sets that come with the package."""

from __future__ import annotations

from importlib.resources import files

from DeepCache.models.registry import named_model
from DeepCache.prompts.reading import text_rows
from DeepCache.prompts.rows import Prompt, prompt_of

BUNDLED = ("shapes", "general")
"""The prompt sets that come with the package: captions of the shapes model, and prompts for general models."""


def bundled_prompt_set(name: str) -> tuple[Prompt, ...]:
    """A prompt set that comes with the package.

    Args:
        name: one of `BUNDLED`.

    Raises:
        ValueError: there is no set with this name.

    Example:
        >>> bundled_prompt_set("general")[5]
        Prompt(text='two foxes asleep in fresh snow', id='6', category='')
    """
    if name not in BUNDLED:
        raise ValueError(f"the bundled prompt sets are {' and '.join(BUNDLED)}, got {name!r}")
    lines = (files("DeepCache.prompts") / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return tuple(prompt_of(row, number) for number, row in enumerate(text_rows(lines), start=1))


def bundled_prompts(model: str) -> tuple[str, ...]:
    """The prompts for a model: its own captions for the bundled model, general prompts for all others.

    Example:
        >>> len(bundled_prompts("shapes")), len(bundled_prompts("owner/name"))
        (40, 64)
    """
    return tuple(prompt.text for prompt in bundled_prompt_set("shapes" if named_model(model) else "general"))
