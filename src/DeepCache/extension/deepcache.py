"""`DeepCacheSDHelper` where the reference package has it. New programs take it from `DeepCache`."""

from __future__ import annotations

from DeepCache.helper import DeepCacheSDHelper as DeepCacheSDHelper

__all__ = ["DeepCacheSDHelper"]
