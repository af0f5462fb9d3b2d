"""Prompts that come with the package, for tuning."""

from __future__ import annotations

from importlib.resources import files

from DeepCache.models.registry import named_model

__all__ = ["bundled_prompts"]


def bundled_prompts(model: str) -> tuple[str, ...]:
    """Prompts that a model can draw: of its own for one that comes with the package, general ones for all others.

    Example:
        >>> len(bundled_prompts("shapes"))
        40
    """
    name = "shapes" if named_model(model) else "general"
    text = (files("DeepCache.tune.prompts") / f"{name}.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line and not line.startswith("#"))
