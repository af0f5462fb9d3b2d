"""DeepCache: pictures from U-Net diffusion pipelines in less time, close to those without it."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from DeepCache.config import DeepCacheConfig as DeepCacheConfig
    from DeepCache.engine.attach import apply_deepcache as apply_deepcache
    from DeepCache.engine.attach import remove_deepcache as remove_deepcache
    from DeepCache.helper import DeepCacheSDHelper as DeepCacheSDHelper

__version__ = version("DeepCache")

_HOMES = {
    "DeepCacheConfig": "DeepCache.config",
    "DeepCacheSDHelper": "DeepCache.helper",
    "apply_deepcache": "DeepCache.engine.attach",
    "remove_deepcache": "DeepCache.engine.attach",
}

__all__ = ["DeepCacheConfig", "DeepCacheSDHelper", "apply_deepcache", "remove_deepcache"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `deepcache --help` must not wait for torch.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
