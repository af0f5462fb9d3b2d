"""Puts DeepCache on a pipeline and takes it off."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.compilation import is_compiled_by_others
from DeepCache.engine.follow import follow_unets, unfollow_unets
from DeepCache.engine.stats import TrajectoryStats
from DeepCache.engine.unet_cache import UnetCache, check_settings
from DeepCache.engine.unets import unets_of

__all__ = ["DeepCacheEngine", "apply_deepcache", "remove_deepcache"]

_ENGINE = "_deepcache_engine"


class DeepCacheEngine:
    """DeepCache on one pipeline. Made by `apply_deepcache` and by `DeepCacheSDHelper`, which share it.

    Args:
        pipe: a pipeline with one or more denoising U-Nets, see `DeepCache.engine.unets.unets_of`; or any object with a
            `unet` and, as a rule, a `scheduler`.
        config: the settings.

    Raises:
        TypeError: the pipeline has no U-Net, or one that DeepCache cannot cut.
        ValueError: the branch is too deep for a U-Net.
    """

    def __init__(self, pipe: Any, config: DeepCacheConfig) -> None:
        self._pipe = pipe
        self._config = config
        self._caches: dict[str, UnetCache] = {}
        self._caches = {name: self._cache(unet, name) for name, unet in unets_of(pipe).items()}

    @property
    def config(self) -> DeepCacheConfig:
        """The settings in force."""
        return self._config

    @property
    def attached(self) -> bool:
        """Whether the engine is on the pipeline."""
        return any(cache.attached for cache in self._caches.values())

    @property
    def stats(self) -> TrajectoryStats:
        """What the last trajectory did; counting its multiply-accumulates takes a moment the first time. Of a pipeline
        with several U-Nets, what the first of them did."""
        return next(iter(self._caches.values())).stats

    @property
    def pattern(self) -> str:
        """The `pattern` in `stats`, without counting anything."""
        return next(iter(self._caches.values())).pattern

    @property
    def unet_stats(self) -> dict[str, TrajectoryStats]:
        """`stats` of every U-Net by the name of its component."""
        return {name: cache.stats for name, cache in self._caches.items()}

    def configure(self, config: DeepCacheConfig) -> None:
        """Changes the settings; the next step is then the first of a new trajectory.

        Raises:
            ValueError: a branch is too deep for a U-Net, the plan is for another, or the U-Net is compiled already; the
                settings stay as they were.
        """
        for cache in self._caches.values():
            check_settings(config, cache.unet, self._pipe)
        self._refuse_to_compile_twice(config)
        self._config = config
        for cache in self._caches.values():
            cache.configure(config)
        if self.attached:
            self._recompile()

    def attach(self) -> None:
        """Puts the engine on the pipeline's U-Nets, in the place of any other that is there. Twice is as good as once.

        Raises:
            TypeError: the pipeline has no U-Net that can be cut.
            ValueError: the branch is too deep for a U-Net.
        """
        unets = unets_of(self._pipe)
        if self.attached and unets == {name: cache.unet for name, cache in self._caches.items()}:
            return
        self._refuse_to_compile_twice(self._config)
        caches = {name: self._cache(unet, name) for name, unet in unets.items()}
        self._let_go()
        self._caches = caches
        for cache in caches.values():
            other = cache.unet.__dict__.get(_ENGINE)
            if other is not None:
                other.detach()
            cache.attach()
            cache.unet.__dict__[_ENGINE] = self
        self._recompile()
        follow_unets(self._pipe, self, tuple(caches))

    def detach(self) -> None:
        """Takes the engine off and leaves the U-Nets as they were found. Twice is as good as once."""
        unfollow_unets(self._pipe, self)
        self._let_go()

    def end_run(self) -> None:
        """Forgets the trajectory and its deep features. Called by diffusers at the end of a pipeline run."""
        for cache in self._caches.values():
            cache.end_run()

    def _cache(self, unet: nn.Module, name: str) -> UnetCache:
        check_settings(self._config, unet, self._pipe)
        last = self._caches.get(name)
        # With all that has been compiled, where the U-Net is the same.
        return last if last is not None and last.unet is unet else UnetCache(unet, self._config, self._pipe, name)

    def _let_go(self) -> None:
        for cache in self._caches.values():
            cache.detach()
            if cache.unet.__dict__.get(_ENGINE) is self:
                del cache.unet.__dict__[_ENGINE]

    def _refuse_to_compile_twice(self, config: DeepCacheConfig) -> None:
        if config.compile != "none" and self._compiled_by_others():
            raise ValueError(f"compile={config.compile!r} and the U-Net is compiled already: leave out one of the two")

    def _recompile(self) -> None:
        if self._compiled_by_others():
            # Of what was compiled before, nothing fits any more.
            torch.compiler.reset()

    def _compiled_by_others(self) -> bool:
        return any(is_compiled_by_others(getattr(self._pipe, name)) for name in self._caches)


def apply_deepcache(pipe: Any, config: DeepCacheConfig | None = None) -> DeepCacheEngine:
    """Puts DeepCache on a pipeline.

    A U-Net has one engine: a second `apply_deepcache`, or a `DeepCacheSDHelper` enabled on the same U-Net, takes the
    place of the first, whose `stats` stay readable.

    Args:
        pipe: any pipeline with a denoising U-Net, or any object with a `unet` and a `scheduler`.
        config: the settings; `DeepCacheConfig()` by default.

    Returns:
        The engine, whose `stats` tell what the last trajectory did.

    Raises:
        TypeError: the pipeline has no U-Net, or one that DeepCache cannot cut.
        ValueError: the branch is too deep for the U-Net.

    Example:
        >>> from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
        >>> from DeepCache.models import load_pipeline
        >>> pipe = load_pipeline("shapes")
        >>> engine = apply_deepcache(pipe, DeepCacheConfig(cache_interval=3))
        >>> image = pipe("a red circle", num_inference_steps=6).images[0]
        >>> engine.stats.pattern
        'F..F..'
        >>> remove_deepcache(pipe)
    """
    engine = DeepCacheEngine(pipe, DeepCacheConfig() if config is None else config)
    engine.attach()
    return engine


def remove_deepcache(pipe: Any) -> None:
    """Takes DeepCache off a pipeline, whichever interface put it on; without effect where it is not on.

    Raises:
        TypeError: the pipeline has no U-Net.
    """
    for unet in unets_of(pipe).values():
        engine = unet.__dict__.get(_ENGINE)
        if engine is not None:
            engine.detach()
