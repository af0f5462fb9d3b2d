"""The slots that an engine stores between calls."""

from __future__ import annotations

from DeepCache.engine.attach import DeepCacheEngine
from DeepCache.engine.slot import Slot


def kept_slots(engine: DeepCacheEngine, name: str = "unet") -> list[Slot]:
    progress = engine._caches[name]._threads._progress.values()
    return [slot for each in progress for slot in each.run.store._slots.values()]
