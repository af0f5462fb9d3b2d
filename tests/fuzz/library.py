"""The interface of DeepCache as the fuzzer uses it. The tests of the fuzzer put another cache in its place."""

from __future__ import annotations

from typing import Any, Protocol

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache, remove_deepcache

__all__ = ["DEEPCACHE", "Applied", "Library"]


class Library(Protocol):
    """What there is to apply."""

    def apply(self, target: Any, config: DeepCacheConfig) -> Any:
        """Applies the cache to a pipeline or a U-Net and returns its engine."""

    def remove(self, target: Any) -> None:
        """Removes it, whoever applied it."""

    def helper(self, target: Any) -> Any:
        """An object with `set_params`, `enable` and `disable`."""


class _DeepCache:
    def apply(self, target: Any, config: DeepCacheConfig) -> Any:
        return apply_deepcache(target, config)

    def remove(self, target: Any) -> None:
        remove_deepcache(target)

    def helper(self, target: Any) -> Any:
        return DeepCacheSDHelper(target)


DEEPCACHE: Library = _DeepCache()


class Applied:
    """The cache on one pipeline or U-Net, by either interface.

    Args:
        library: what is applied.
        way: `"pipe"`, `"bare"` (the U-Net by itself) or `"helper"`.
        target: the pipeline or the U-Net.
        config: the settings.
    """

    def __init__(self, library: Library, way: str, target: Any, config: DeepCacheConfig) -> None:
        self.way, self.target = way, target
        if way == "helper":
            self.engine: Any = None
            self.helper = library.helper(target)
            self._set(config)
            self.helper.enable()
        else:
            self.helper, self.engine = None, library.apply(target, config)

    @property
    def root(self) -> Any:
        """What holds all that is kept."""
        return self.engine or self.helper

    @property
    def scheduler(self) -> Any:
        """The scheduler that the cache can see."""
        return getattr(self.target, "scheduler", None)

    def configure(self, config: DeepCacheConfig) -> None:
        """Changes the settings."""
        if self.helper is not None:
            self._set(config)
        else:
            self.engine.configure(config)

    def attach(self) -> None:
        """Puts it back."""
        if self.helper is not None:
            self.helper.enable()
        else:
            self.engine.attach()

    def detach(self) -> None:
        """Takes it off."""
        if self.helper is not None:
            self.helper.disable()
        else:
            self.engine.detach()

    def end_run(self) -> None:
        """Ends the run; the helper has no other means than to be turned off and on."""
        if self.helper is not None:
            self.helper.disable()
            self.helper.enable()
        else:
            self.engine.end_run()

    def _set(self, config: DeepCacheConfig) -> None:
        self.helper.set_params(
            cache_interval=config.cache_interval,
            cache_branch_id=config.cache_branch_id,
            forecast=config.forecast,
            schedule=config.schedule,
        )
