"""Settings by name, resolved by the guidance scale of the run."""

from __future__ import annotations

from DeepCache.config import DeepCacheConfig

__all__ = ["PRESETS", "preset"]

PRESETS = {"faithful": 2, "balanced": 3, "fast": 5}
"""The presets, and the number of evaluations from one full one to the next."""

# Up to here a line through past predictions is the better forecast (docs/guidance.md).
_LOW_GUIDANCE = 3.0


def preset(name: str, guidance: float | None) -> DeepCacheConfig:
    """The settings that a preset stands for.

    Args:
        name: one of `PRESETS`.
        guidance: the guidance scale; None, where that is not known, is taken for a high one.

    Example:
        >>> preset("balanced", 7.5).forecast, preset("balanced", 2.0).forecast
        ('response', 'limited')
    """
    low = guidance is not None and guidance <= _LOW_GUIDANCE
    return DeepCacheConfig(PRESETS[name], between="skipped", forecast="limited" if low else "response")
