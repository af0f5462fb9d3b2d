"""`--preset`: what it stands for depends on the guidance scale and the scheduler, which may be those of the model."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console

from DeepCache.config import DeepCacheConfig

__all__ = ["check_preset", "preset_config"]


def check_preset(preset: str | None) -> None:
    """Refuses an unknown preset, before a model is loaded.

    Raises:
        ValueError: it is neither one of `PRESETS` nor None.
    """
    if preset is not None:
        DeepCacheConfig.preset(preset)


def preset_config(
    preset: str, guidance: float | None, scheduler: str, cache: DeepCacheConfig, console: Console
) -> DeepCacheConfig:
    """What a preset stands for at a guidance scale with a scheduler, which is printed.

    Args:
        preset: one of `PRESETS`.
        guidance: the guidance scale; None where the pipeline takes none.
        scheduler: the class of the scheduler.
        cache: what the other options stand for, of which only the compile mode counts.
        console: where to print.
    """
    found = DeepCacheConfig.preset(preset, guidance, scheduler)
    words = f"--interval {found.cache_interval} --between {found.between} --forecast {found.forecast}"
    console.print(f"Preset {preset}: {words}", soft_wrap=True, highlight=False)
    return replace(found, compile=cache.compile)
