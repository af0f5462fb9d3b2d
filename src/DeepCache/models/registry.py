"""The bundled models, by name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

__all__ = ["MODELS", "NamedModel", "named_model"]


@dataclass(frozen=True)
class NamedModel:
    """A bundled model.

    Args:
        name: the name for `load_pipeline` and the commands.
        summary: a description in one sentence.
        guidance: the recommended guidance scale.
    """

    name: str
    summary: str
    guidance: float

    @property
    def folder(self) -> Path:
        """Its folder in the package."""
        return Path(str(files("DeepCache.models") / self.name))


MODELS = {
    "shapes": NamedModel("shapes", "One to three coloured shapes on a background, 64 by 64 pixels.", guidance=2.0),
}


def named_model(model: str) -> NamedModel | None:
    """The bundled model of that name, or None."""
    return MODELS.get(model)
