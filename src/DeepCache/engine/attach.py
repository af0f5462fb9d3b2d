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

_ENGINE = "_deepcache_engine"


class DeepCacheEngine:
    """DeepCache on one pipeline, or on one denoiser. Made by `apply_deepcache` and by `DeepCacheSDHelper`.

    Args:
        pipe: a pipeline with one or more denoisers, any object with a `unet` and usually a `scheduler`, or a denoiser.
        config: the settings.
        slot_key: see `apply_deepcache`.

    Raises:
        TypeError: there is no denoiser, it cannot be cut, or the settings are not a `DeepCacheConfig`.
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
        """The pipeline or the denoiser."""
        return self._pipe

    @property
    def config(self) -> DeepCacheConfig:
        """The settings in force."""
        return self._config

    @property
    def attached(self) -> bool:
        """Whether the engine is attached to the pipeline."""
        return any(cache.attached for cache in self._caches.values())

    @property
    def stats(self) -> TrajectoryStats:
        """Statistics of the last denoising run, for a pipeline with several U-Nets those of the first. Counting the
        multiply-accumulates takes a moment the first time."""
        return self._first.stats

    @property
    def pattern(self) -> str:
        """The `pattern` in `stats`, without counting anything."""
        return self._first.pattern

    @property
    def places(self) -> tuple[int | None, int]:
        """Positions of the first and the latest step of this thread's run in the list of timesteps, starting at 0; None
        and 0 if no run is in progress. For a pipeline with several U-Nets, those of the first."""
        return self._first.places

    @property
    def unet_stats(self) -> dict[str, TrajectoryStats]:
        """`stats` of every U-Net by the name of its component."""
        return {name: cache.stats for name, cache in self._caches.items()}

    def configure(self, config: DeepCacheConfig) -> None:
        """Changes the settings; the next step is then the first of a new run.

        Raises:
            ValueError: a branch is too deep for a U-Net, the plan is for another, or the U-Net is compiled already. The
                settings are unchanged.
            RuntimeError: it is called within a call of the U-Net.
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
        """Attaches the engine to the pipeline's U-Nets, replacing any other. Idempotent.

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
        """Attaches the engine to the current U-Nets of the pipeline, and detaches it from the former ones. If one is
        None, or cannot be cut as configured, the engine is detached from all until the next is assigned.

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
        """Detaches the engine and restores the U-Nets. Idempotent."""
        unfollow_unets(self._pipe, self)
        self._let_go()

    def end_run(self) -> None:
        """Forgets the current run and its deep features. Diffusers does this at the end of a pipeline run."""
        for cache in self._caches.values():
            cache.end_run()

    @property
    def _first(self) -> DenoiserCache:
        return next(iter(self._caches.values()))

    def _cache(self, unet: nn.Module, name: str) -> DenoiserCache:
        check_settings(self._config, unet, self._pipe, name)
        last = self._caches.get(name)
        # The last one, if it is for this U-Net, has its compiled code.
        if last is not None and last.denoiser is unet:
            return last
        return DenoiserCache(unet, self._config, self._pipe, name, self._slot_key)

    def _let_go(self) -> None:
        for cache in self._caches.values():
            cache.detach()
            if cache.denoiser.__dict__.get(_ENGINE) is self:
                del cache.denoiser.__dict__[_ENGINE]

    def _refuse_to_compile_twice(self, config: DeepCacheConfig) -> None:
        if not CALLS_WHAT_IS_COMPILED and self._compiled_by_others():
            raise ValueError(f"DeepCache on a compiled U-Net requires torch 2.1, got {torch.__version__}")
        if config.compile != "none" and self._compiled_by_others():
            raise ValueError(f"compile={config.compile!r} and the U-Net is compiled already: remove one of the two")

    def _recompile(self) -> None:
        if self._compiled_by_others():
            # Code compiled before does not fit any more.
            torch.compiler.reset()

    def _compiled_by_others(self) -> bool:
        return any(is_compiled_by_others(component_of(self._pipe, name)) for name in self._caches)


def apply_deepcache(
    pipe: Any, config: DeepCacheConfig | None = None, slot_key: SlotName | None = None
) -> DeepCacheEngine:
    """Applies DeepCache to a pipeline, or to a denoiser by itself.

    A denoiser has one engine: a second `apply_deepcache`, or a `DeepCacheSDHelper` enabled on it, replaces the first,
    whose `stats` stay readable.

    Args:
        pipe: any pipeline with a denoiser, any object with a `unet` and a `scheduler`, or the denoiser itself
            (`pipe.unet`), for your own loop.
        config: the settings; `DeepCacheConfig()` by default.
        slot_key: for programs that make several calls per step, a function of a call's positional and keyword
            arguments that returns a hashable name for the call. Calls with the same name are distinguished by their
            order within the step; by default, all calls are.

    Returns:
        The engine, with the `stats` of the last denoising run.

    Raises:
        TypeError: there is no denoiser, it cannot be cut, or the settings are not a `DeepCacheConfig`.
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
    """Removes DeepCache from a pipeline or a denoiser, whichever interface applied it. Idempotent.

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
