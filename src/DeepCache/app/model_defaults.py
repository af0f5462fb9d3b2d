"""What a model generates with where the visitor asks for nothing else, and the largest image to ask it for."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from math import isqrt
from typing import Any

from DeepCache.bench.workload import default_size
from DeepCache.models.loading import recommended_guidance

__all__ = ["MOST_TIMES_THE_PIXELS", "ModelDefaults"]

MOST_TIMES_THE_PIXELS = 4
"""The pixels of the largest image over those of the model's own size. Time and memory grow faster than the pixels, and
far beyond the size that it was trained at a model repeats itself."""


@dataclass(frozen=True)
class ModelDefaults:
    """The values of a model.

    Args:
        guidance: the guidance scale that is recommended; None where it takes none, or is not loaded yet.
        size: its own width and height in pixels; None where it takes no size, or is not loaded yet.
        scheduler: the class of its own scheduler; None where it is not loaded yet.
    """

    guidance: float | None = None
    size: tuple[int, int] | None = None
    scheduler: str | None = None

    @classmethod
    def of(cls, model: str, pipe: Any) -> ModelDefaults:
        """Those of a loaded model.

        Args:
            model: what `load_pipeline` was given.
            pipe: what it returned.

        Returns:
            The values.

        Example:
            >>> from DeepCache.models import load_pipeline
            >>> ModelDefaults.of("shapes", load_pipeline("shapes", device="cpu"))
            ModelDefaults(guidance=2.0, size=(64, 64), scheduler='DDIMScheduler')
        """
        takes_size = {"width", "height"} <= signature(pipe.__call__).parameters.keys()
        size = default_size(pipe) if takes_size else None
        return cls(recommended_guidance(model, pipe), size, type(pipe.scheduler).__name__)

    def check_size(self, size: tuple[int, int] | None) -> None:
        """Refuses an image that would keep the other visitors waiting.

        Args:
            size: width and height in pixels that are asked for; None for the model's own.

        Raises:
            ValueError: it has more than `MOST_TIMES_THE_PIXELS` times the pixels of the model's own size.

        Example:
            >>> ModelDefaults(size=(64, 64)).check_size((64, 256))
        """
        if size is None or self.size is None:
            return
        width, height = size
        own_width, own_height = self.size
        most = MOST_TIMES_THE_PIXELS * own_width * own_height
        if width * height > most:
            largest = isqrt(most) // 8 * 8
            raise ValueError(
                f"{width}x{height} is too large here: an image may have {MOST_TIMES_THE_PIXELS} times the pixels of "
                f"the model's own {own_width}x{own_height}, so that the largest square is {largest}x{largest}"
            )
