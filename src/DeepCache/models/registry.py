"""The models that have a name of their own: those that come with the package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

__all__ = ["MODELS", "NamedModel", "named_model"]


@dataclass(frozen=True)
class NamedModel:
    """A model that is known by name.

    Args:
        name: what `load_pipeline` and the commands call it.
        summary: what it draws, in one sentence.
        guidance: the guidance scale that it draws best with.
    """

    name: str
    summary: str
    guidance: float

    @property
    def folder(self) -> Path:
        """Where the package keeps it."""
        return Path(str(files("DeepCache.models") / self.name))


MODELS = {
    model.name: model
    for model in (
        NamedModel(
            "shapes",
            "One to three coloured shapes on a background, 64 by 64 pixels.",
            guidance=2.0,
        ),
    )
}


def named_model(model: str) -> NamedModel | None:
    """The model of that name, or None where the name is that of none that comes with the package."""
    return MODELS.get(model)
