"""Applies DeepCache to a pipeline, or to a denoiser by itself, and removes it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.arguments import SlotName
from DeepCache.engine.checks import check_settings
from DeepCache.engine.compilation import is_compiled_by_others
from DeepCache.engine.denoiser_cache import DenoiserCache
from DeepCache.engine.follow import follow_unets, unfollow_unets
from DeepCache.engine.stats import TrajectoryStats
from DeepCache.engine.torch_versions import CALLS_WHAT_IS_COMPILED
from DeepCache.engine.unets import component_of, unets_of

__all__ = ["DeepCacheEngine", "apply_deepcache", "remove_deepcache"]

_ENGINE = "_deepcache_engine"


class DeepCacheEngine:
    """DeepCache on one pipeline, or on one denoiser. Made by `apply_deepcache` and by `DeepCacheSDHelper`.

    Args:
        pipe: a pipeline with one or more denoisers, see `DeepCache.engine.unets.unets_of`; any object with a `unet`
            and, as a rule, a `scheduler`; or a denoiser by itself.
        config: the settings.
        slot_key: see `apply_deepcache`.

    Raises:
        TypeError: there is no denoiser, or one that DeepCache cannot cut, or the settings are not a `DeepCacheConfig`.
        ValueError: the branch is too deep for a denoiser.
    """

    def __init__(self, pipe: Any, config: DeepCacheConfig, slot_key: SlotName | None = None) -> None:
        _check_config(config)
        if slot_key is not None and not callable(slot_key):
            raise TypeError(f"slot_key must be a function of a call's arguments, got {slot_key!r}")
        self._pipe = pipe
        self._config = config
        self._slot_key = slot_key
        self._caches: dict[str, DenoiserCache] = {}
        self._caches = {name: self._cache(unet, name) for name, unet in unets_of(pipe).items()}

    def __repr__(self) -> str:
        on = ", ".join(type(cache.denoiser).__name__ for cache in self._caches.values())
        return f"<DeepCacheEngine {'on' if self.attached else 'detached from'} {on}: {self._config}>"

    @property
    def pipe(self) -> Any:
        """What the engine was made for."""
        return self._pipe

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
    def places(self) -> tuple[int | None, int]:
        """Where the first and the latest step of this thread's run stand in the list of timesteps, from 0; None and 0
        where none is in progress. Of a pipeline with several U-Nets, those of the first."""
        return next(iter(self._caches.values())).places

    @property
    def unet_stats(self) -> dict[str, TrajectoryStats]:
        """`stats` of every U-Net by the name of its component."""
        return {name: cache.stats for name, cache in self._caches.items()}

    def configure(self, config: DeepCacheConfig) -> None:
        """Changes the settings; the next step is then the first of a new trajectory.

        Raises:
            ValueError: a branch is too deep for a U-Net, the plan is for another, or the U-Net is compiled already; the
                settings stay as they were.
            RuntimeError: it is called from within a call of the U-Net.
        """
        _check_config(config)
        with ExitStack() as stack:
            for name, cache in self._caches.items():
                stack.enter_context(cache.between_calls())
                check_settings(config, cache.denoiser, self._pipe, name)
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
        if self.attached and unets == {name: cache.denoiser for name, cache in self._caches.items()}:
            return
        self._refuse_to_compile_twice(self._config)
        caches = {name: self._cache(unet, name) for name, unet in unets.items()}
        self._let_go()
        self._caches = caches
        try:
            for cache in caches.values():
                other = cache.denoiser.__dict__.get(_ENGINE)
                if other is not None:
                    other.detach()
                cache.attach()
                cache.denoiser.__dict__[_ENGINE] = self
            self._recompile()
            if "" not in caches:
                follow_unets(self._pipe, self, tuple(caches))
        except BaseException:
            self.detach()
            raise

    def follow(self) -> None:
        """Puts the engine on the U-Nets that the pipeline has now, and takes it off those that it had. Where one is
        None, or cannot be cut as the settings ask for, the engine is on none until the next is assigned.

        Raises:
            TypeError: a U-Net cannot be cut.
            ValueError: the branch is too deep for a U-Net.
        """
        try:
            if any(getattr(self._pipe, name, None) is None for name in self._caches):
                self._let_go()
            else:
                self.attach()
        except BaseException:
            self._let_go()
            raise

    def detach(self) -> None:
        """Takes the engine off and leaves the U-Nets as they were found. Twice is as good as once."""
        unfollow_unets(self._pipe, self)
        self._let_go()

    def end_run(self) -> None:
        """Forgets the trajectory and its deep features. Called by diffusers at the end of a pipeline run."""
        for cache in self._caches.values():
            cache.end_run()

    def _cache(self, unet: nn.Module, name: str) -> DenoiserCache:
        check_settings(self._config, unet, self._pipe, name)
        last = self._caches.get(name)
        # With all that has been compiled, where the U-Net is the same.
        return (
            last
            if last is not None and last.denoiser is unet
            else DenoiserCache(unet, self._config, self._pipe, name, self._slot_key)
        )

    def _let_go(self) -> None:
        for cache in self._caches.values():
            cache.detach()
            if cache.denoiser.__dict__.get(_ENGINE) is self:
                del cache.denoiser.__dict__[_ENGINE]

    def _refuse_to_compile_twice(self, config: DeepCacheConfig) -> None:
        if not CALLS_WHAT_IS_COMPILED and self._compiled_by_others():
            raise ValueError(f"DeepCache on a compiled U-Net requires torch 2.1, got {torch.__version__}")
        if config.compile != "none" and self._compiled_by_others():
            raise ValueError(f"compile={config.compile!r} and the U-Net is compiled already: leave out one of the two")

    def _recompile(self) -> None:
        if self._compiled_by_others():
            # Of what was compiled before, nothing fits any more.
            torch.compiler.reset()

    def _compiled_by_others(self) -> bool:
        return any(is_compiled_by_others(component_of(self._pipe, name)) for name in self._caches)


def apply_deepcache(
    pipe: Any, config: DeepCacheConfig | None = None, slot_key: SlotName | None = None
) -> DeepCacheEngine:
    """Applies DeepCache to a pipeline, or to a denoiser by itself.

    A denoiser has one engine: a second `apply_deepcache`, or a `DeepCacheSDHelper` enabled on it, takes the place of
    the first, whose `stats` stay readable.

    Args:
        pipe: any pipeline with a denoiser, any object with a `unet` and a `scheduler`, or the denoiser itself
            (`pipe.unet`), for a loop of your own.
        config: the settings; `DeepCacheConfig()` by default.
        slot_key: for programs that make several calls per step, a function of a call's positional and keyword
            arguments that returns a hashable name for the call. Calls with the same name are distinguished by their
            order within the step; by default, all calls are.

    Returns:
        The engine, whose `stats` tell what the last trajectory did.

    Raises:
        TypeError: there is no denoiser, or one that DeepCache cannot cut, or the settings are not a `DeepCacheConfig`.
        ValueError: the branch is too deep for the denoiser.

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
    engine = DeepCacheEngine(pipe, DeepCacheConfig() if config is None else config, slot_key)
    engine.attach()
    return engine


def remove_deepcache(pipe: Any) -> None:
    """Removes DeepCache from a pipeline or a denoiser, whichever interface applied it; without effect where none did.

    Raises:
        TypeError: the pipeline has no U-Net.
    """
    for unet in unets_of(pipe).values():
        engine = unet.__dict__.get(_ENGINE)
        if engine is not None:
            engine.detach()


def _check_config(config: object) -> None:
    if not isinstance(config, DeepCacheConfig):
        fix = "DeepCacheConfig(**config)" if isinstance(config, dict) else "DeepCacheConfig(cache_interval=3)"
        raise TypeError(f"config must be a DeepCacheConfig, got {config!r}. Use {fix}")
