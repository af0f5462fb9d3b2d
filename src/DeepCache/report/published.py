"""The speed-ups in the documentation of diffusers, to stand beside measured ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

__all__ = [
    "PUBLISHED",
    "PUBLISHED_ON",
    "PUBLISHED_PAGE",
    "PUBLISHED_STEPS",
    "PublishedRow",
    "PublishedTime",
    "is_published_model",
    "published_time",
]

PUBLISHED_STEPS = 50
PUBLISHED_ON = f"SD 2.1, RTX A5000, {PUBLISHED_STEPS} steps"
PUBLISHED_PAGE = "https://huggingface.co/docs/diffusers/optimization/deepcache"


@dataclass(frozen=True)
class PublishedTime:
    """What was published of one setting.

    Args:
        seconds: for a batch.
        speed_up: how many times as fast as without caching.
    """

    seconds: float
    speed_up: float


@dataclass(frozen=True)
class PublishedRow:
    """A row of the published table.

    Args:
        original: seconds for a batch without caching.
        by_setting: with DeepCache, by interval and branch.
    """

    original: float
    by_setting: Mapping[tuple[int, int], PublishedTime]


_SETTINGS = ((3, 0), (5, 0), (5, 1))


def _row(original: float, *times: tuple[float, float]) -> PublishedRow:
    return PublishedRow(original, {key: PublishedTime(*time) for key, time in zip(_SETTINGS, times, strict=True)})


PUBLISHED = {
    (512, 8): _row(15.96, (6.88, 2.32), (5.03, 3.18), (7.27, 2.20)),
    (512, 4): _row(8.39, (3.60, 2.33), (2.62, 3.21), (3.75, 2.24)),
    (512, 1): _row(2.61, (1.12, 2.33), (0.81, 3.24), (1.11, 2.35)),
    (768, 8): _row(43.58, (18.99, 2.29), (13.96, 3.12), (21.27, 2.05)),
    (768, 4): _row(22.24, (9.67, 2.30), (7.10, 3.13), (10.74, 2.07)),
    (768, 1): _row(6.33, (2.72, 2.33), (1.97, 3.21), (2.98, 2.12)),
    (1024, 8): _row(101.95, (45.57, 2.24), (33.72, 3.02), (53.00, 1.92)),
    (1024, 4): _row(49.25, (21.86, 2.25), (16.19, 3.04), (25.78, 1.91)),
    (1024, 1): _row(13.83, (6.07, 2.28), (4.43, 3.12), (7.15, 1.93)),
}
"""The published table, by side in pixels and batch size."""

# Stable Diffusion 1.5 counts as well: its U-Net costs what that of 2.1 costs.
_NAMES = ("sd21", "sd15")
_PARTS = ("stable-diffusion-2-1", "stable-diffusion-v1-5")


def is_published_model(model: str) -> bool:
    """Whether the published table is of this model, or of one whose U-Net costs the same.

    Args:
        model: a name of `deepcache`, a hub id or a folder.

    Example:
        >>> is_published_model("stabilityai/stable-diffusion-2-1"), is_published_model("sdxl")
        (True, False)
    """
    last = PurePath(model).name.lower()
    return model in _NAMES or any(part in last for part in _PARTS)


def published_time(
    model: str, width: int, height: int, batch: int, config: Mapping[str, Any] | None
) -> PublishedTime | None:
    """What was published of a measurement; None where nothing was.

    Args:
        model: a name of `deepcache`, a hub id or a folder.
        width: in pixels.
        height: in pixels.
        batch: pictures in one pipeline call.
        config: the settings, as `DeepCacheConfig.to_dict` gives them.

    Example:
        >>> config = {"cache_interval": 3, "cache_branch_id": 0, "skip_mode": "uniform", "forecast": "none"}
        >>> published_time("sd21", 512, 512, 8, config)
        PublishedTime(seconds=6.88, speed_up=2.32)
    """
    row = PUBLISHED.get((width, batch))
    if row is None or width != height or not is_published_model(model) or config is None:
        return None
    as_published = config.get("forecast") == "none" and config.get("skip_mode", "uniform") == "uniform"
    if not as_published or any(config.get(key) for key in ("guidance_reuse", "schedule", "plan")):
        return None
    return row.by_setting.get((config.get("cache_interval", 0), config.get("cache_branch_id", 0)))
