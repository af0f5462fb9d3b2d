"""The speed-ups in the diffusers documentation, to compare with measured ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

__all__ = ["PUBLISHED", "PUBLISHED_ON", "PUBLISHED_PAGE", "PUBLISHED_STEPS", "is_published_model", "published_time"]

PUBLISHED_STEPS = 50
PUBLISHED_ON = f"SD 2.1, RTX A5000, {PUBLISHED_STEPS} steps"
PUBLISHED_PAGE = "https://huggingface.co/docs/diffusers/optimization/deepcache"


class PublishedTime(NamedTuple):
    """Seconds for a batch, and the speed-up over no caching."""

    seconds: float
    speed_up: float


class PublishedRow(NamedTuple):
    """Seconds for a batch without caching, and the times with DeepCache by interval and branch."""

    original: float
    by_setting: Mapping[tuple[int, int], PublishedTime]


def _row(original: float, *times: tuple[float, float]) -> PublishedRow:
    settings = ((3, 0), (5, 0), (5, 1))
    return PublishedRow(original, {key: PublishedTime(*time) for key, time in zip(settings, times, strict=True)})


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


def is_published_model(model: str) -> bool:
    """Whether the published table applies to a model (a name, hub id or folder): SD 2.1, or SD 1.5, whose U-Net has the
    same cost.

    Example:
        >>> is_published_model("stabilityai/stable-diffusion-2-1"), is_published_model("sdxl")
        (True, False)
    """
    last = PurePath(model).name.lower()
    return model in ("sd21", "sd15") or "stable-diffusion-2-1" in last or "stable-diffusion-v1-5" in last


def published_time(
    model: str, width: int, height: int, batch: int, config: Mapping[str, Any] | None
) -> PublishedTime | None:
    """The published time of a measurement, if any; `config` is as `DeepCacheConfig.to_dict` returns it.

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
