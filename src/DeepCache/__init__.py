"""DeepCache: faster image generation with diffusion models that have skip connections, without training."""

from __future__ import annotations

# Names are imported on first use, so that `deepcache --help` does not wait for torch.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from DeepCache.config import DeepCacheConfig as DeepCacheConfig
    from DeepCache.engine.attach import apply_deepcache as apply_deepcache
    from DeepCache.engine.attach import remove_deepcache as remove_deepcache
    from DeepCache.engine.layouts import register_layout as register_layout
    from DeepCache.errors import DeepCacheError as DeepCacheError
    from DeepCache.helper import DeepCacheSDHelper as DeepCacheSDHelper
    from DeepCache.plan import Plan as Plan
    from DeepCache.schedule import AdaptiveSchedule as AdaptiveSchedule
    from DeepCache.schedule import BranchSchedule as BranchSchedule
    from DeepCache.schedule import ExplicitSchedule as ExplicitSchedule
    from DeepCache.schedule import NonUniformSchedule as NonUniformSchedule
    from DeepCache.schedule import Schedule as Schedule
    from DeepCache.schedule import Step as Step
    from DeepCache.schedule import StepSchedule as StepSchedule
    from DeepCache.schedule import UniformSchedule as UniformSchedule
    from DeepCache.schedule import WindowSchedule as WindowSchedule

    __version__: str

_SCHEDULES = (
    "AdaptiveSchedule",
    "BranchSchedule",
    "ExplicitSchedule",
    "NonUniformSchedule",
    "Schedule",
    "Step",
    "StepSchedule",
    "UniformSchedule",
    "WindowSchedule",
)
_HOMES = {
    "DeepCacheConfig": "DeepCache.config",
    "DeepCacheError": "DeepCache.errors",
    "DeepCacheSDHelper": "DeepCache.helper",
    "Plan": "DeepCache.plan",
    "apply_deepcache": "DeepCache.engine.attach",
    "register_layout": "DeepCache.engine.layouts",
    "remove_deepcache": "DeepCache.engine.attach",
    **dict.fromkeys(_SCHEDULES, "DeepCache.schedule"),
}

__all__ = [
    "AdaptiveSchedule",
    "BranchSchedule",
    "DeepCacheConfig",
    "DeepCacheError",
    "DeepCacheSDHelper",
    "ExplicitSchedule",
    "NonUniformSchedule",
    "Plan",
    "Schedule",
    "Step",
    "StepSchedule",
    "UniformSchedule",
    "WindowSchedule",
    "apply_deepcache",
    "register_layout",
    "remove_deepcache",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("DeepCache")
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
