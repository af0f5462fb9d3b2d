"""`--preset`: what it stands for depends on the guidance scale and the scheduler, which may be those of the model."""

from __future__ import annotations

from rich.console import Console

from DeepCache.config import DeepCacheConfig

__all__ = ["check_preset", "preset_config"]


def check_preset(preset: str | None, cache: DeepCacheConfig) -> None:
    """Refuses a preset that is unknown or combined with other settings of DeepCache, before a model is loaded.

    Args:
        preset: one of `PRESETS`, or None for no preset.
        cache: what the other options stand for.

    Raises:
        ValueError: there is no such preset, or `cache` differs from the default.
    """
    if preset is None:
        return
    DeepCacheConfig.preset(preset)
    if cache != DeepCacheConfig():
        raise ValueError(f"--preset {preset} cannot be combined with other settings of DeepCache. Remove them")


def preset_config(preset: str, guidance: float | None, scheduler: str, console: Console) -> DeepCacheConfig:
    """What a preset stands for at a guidance scale with a scheduler, which is printed.

    Args:
        preset: one of `PRESETS`.
        guidance: the guidance scale; None where the pipeline takes none.
        scheduler: the class of the scheduler.
        console: where to print.
    """
    cache = DeepCacheConfig.preset(preset, guidance, scheduler)
    words = f"--interval {cache.cache_interval} --between {cache.between} --forecast {cache.forecast}"
    console.print(f"Preset {preset}: {words}", soft_wrap=True, highlight=False)
    return cache
