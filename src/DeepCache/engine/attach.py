"""Puts DeepCache on a pipeline's U-Net and takes it off."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.branches import SkipBranch, down_blocks, layer_lists, skip_branches, up_blocks
from DeepCache.engine.feature import DeepFeature, FeatureTap
from DeepCache.engine.follow import follow_unet, unfollow_unet
from DeepCache.engine.narrowing import Narrowing, deep_feature_modules
from DeepCache.engine.stats import TrajectoryRecord, TrajectoryStats
from DeepCache.engine.trajectory import Moment, Trajectory

__all__ = ["DeepCacheEngine", "apply_deepcache", "remove_deepcache"]

_ENGINE = "_deepcache_engine"
_END_OF_RUN = "_reset_stateful_cache"


class DeepCacheEngine:
    """DeepCache on one pipeline. Made by `apply_deepcache` and by `DeepCacheSDHelper`, which share it.

    Args:
        pipe: any object with a `unet` and, as a rule, a `scheduler`.
        config: the settings.
    """

    def __init__(self, pipe: Any, config: DeepCacheConfig) -> None:
        self._pipe = pipe
        self._config = config
        self._trajectory = Trajectory()
        self._features: dict[int, DeepFeature] = {}
        self._handles: list[RemovableHandle] = []
        self._tap_handles: list[RemovableHandle] = []
        self._call: tuple[Moment, torch.Tensor, bool] | None = None
        self._unet = unet_of(pipe)
        self._cut_at(self._unet)

    @property
    def config(self) -> DeepCacheConfig:
        """The settings in force."""
        return self._config

    @property
    def attached(self) -> bool:
        """Whether the engine is on the U-Net."""
        return bool(self._handles)

    @property
    def stats(self) -> TrajectoryStats:
        """What the last trajectory did; counting its multiply-accumulates takes a moment the first time."""
        return self._record.stats(self._unet)

    def configure(self, config: DeepCacheConfig) -> None:
        """Changes the settings; the next step is then the first of a new trajectory.

        Raises:
            ValueError: the branch is too deep for the U-Net; the settings stay as they were.
        """
        branch_of(self._unet, config.cache_branch_id)
        self._config = config
        self.end_run()
        self._cut_at(self._unet)
        if self.attached:
            self._tap()

    def attach(self) -> None:
        """Puts the engine on the pipeline's U-Net, in the place of any other that is there. Twice is as good as once.

        Raises:
            TypeError: the pipeline has no U-Net that can be cut.
            ValueError: the branch is too deep for the U-Net.
        """
        unet = unet_of(self._pipe)
        if self.attached and unet is self._unet:
            return
        branch_of(unet, self._config.cache_branch_id)
        self._let_go()
        other = unet.__dict__.get(_ENGINE)
        if other is not None:
            other.detach()
        self._unet = unet
        self._cut_at(unet)
        self._handles = [
            unet.register_forward_pre_hook(self._before_call, with_kwargs=True),
            unet.register_forward_hook(self._after_call, always_call=True),
        ]
        self._tap()
        unet.__dict__[_ENGINE] = self
        # Diffusers calls this on every component of a pipeline at the end of a run.
        unet.__dict__[_END_OF_RUN] = self.end_run
        follow_unet(self._pipe, self)

    def detach(self) -> None:
        """Takes the engine off and leaves the U-Net as it was found. Twice is as good as once."""
        unfollow_unet(self._pipe, self)
        self._let_go()

    def end_run(self) -> None:
        """Forgets the trajectory and its deep features. Called by diffusers at the end of a pipeline run."""
        self._widen()
        self._call = None
        self._features.clear()
        self._tap_of_feature.take()
        self._trajectory.reset()

    def _let_go(self) -> None:
        self.end_run()
        for handle in (*self._handles, *self._tap_handles):
            handle.remove()
        self._handles, self._tap_handles = [], []
        if self._unet.__dict__.get(_ENGINE) is self:
            del self._unet.__dict__[_ENGINE]
            del self._unet.__dict__[_END_OF_RUN]

    def _cut_at(self, unet: nn.Module) -> None:
        """Prepares the cut of the configured branch; nothing on the U-Net changes yet."""
        self._branch = branch_of(unet, self._config.cache_branch_id)
        self._structure = _structure(unet)
        self._narrowing = Narrowing(unet, self._branch)
        self._tap_of_feature = FeatureTap()
        self._record = TrajectoryRecord(self._branch)
        self._names = _names_of_sample_and_timestep(unet)

    def _tap(self) -> None:
        for handle in self._tap_handles:
            handle.remove()
        modules = deep_feature_modules(self._unet, self._branch) if self._config.schedule.caches else []
        self._tap_handles = [module.register_forward_hook(self._tap_of_feature) for module in modules]
        if _is_compiled(self._pipe.unet):
            # What is compiled already knows nothing of hooks that came later.
            torch.compiler.reset()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before_call(
        self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._call is not None:
            # The call before this one never came back (Ctrl-C inside it): nothing it left is to be trusted.
            self.end_run()
        sample, timestep = (_argument(args, kwargs, index, name) for index, name in enumerate(self._names))
        moment = self._trajectory.locate(timestep, getattr(self._pipe, "scheduler", None))
        if moment.starts:
            self._start_trajectory(unet)
        feature = self._features.get(moment.slot)
        full = feature is None or self._config.schedule.is_full(moment.step) or not feature.fits(sample)
        self._record.note_call(moment.slot, full, sample, args, kwargs)
        self._call = (moment, sample, full)
        if full or feature is None:
            return None
        self._tap_of_feature.open = False
        self._narrowing.apply(feature.tensor)
        return args, self._narrowing.narrow_kwargs(kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after_call(self, unet: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._call is None or output is None:
            # The U-Net raised.
            self.end_run()
            return
        (moment, sample, full), self._call = self._call, None
        if not full:
            self._widen()
        elif self._config.schedule.caches:
            self._store(moment.slot, sample)
        if moment.ends:
            self._features.pop(moment.slot, None)

    def _widen(self) -> None:
        self._narrowing.undo()
        self._tap_of_feature.open = True

    def _start_trajectory(self, unet: nn.Module) -> None:
        self._features.clear()
        # Somebody may have replaced a block or a layer since the last run.
        if self._structure != _structure(unet):
            self._cut_at(unet)
            self._tap()
        self._record = TrajectoryRecord(self._branch)

    def _store(self, slot: int, sample: torch.Tensor) -> None:
        tensor = self._tap_of_feature.take()
        if tensor is None:
            raise RuntimeError(
                f"no module of {self._branch.name} ran on a full step, so there is no deep feature to keep; "
                "this U-Net does not call its layers as modules"
            )
        self._features[slot] = DeepFeature(tensor, (sample.shape, sample.dtype, sample.device))
        self._record.note_bytes(sum(feature.bytes for feature in self._features.values()))


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
    engine = unet_of(pipe).__dict__.get(_ENGINE)
    if engine is not None:
        engine.detach()


def unet_of(pipe: Any) -> nn.Module:
    """The U-Net of a pipeline; the module itself where `torch.compile` has wrapped it.

    Raises:
        TypeError: there is none.
    """
    unet = getattr(pipe, "unet", None)
    if not isinstance(unet, nn.Module):
        raise TypeError(
            f"DeepCache needs a pipeline with a U-Net in its attribute 'unet'; {type(pipe).__name__} has "
            + ("none" if unet is None else f"a {type(unet).__name__} there")
        )
    return unet._orig_mod if isinstance(unet, torch._dynamo.OptimizedModule) else unet


def branch_of(unet: nn.Module, number: int) -> SkipBranch:
    """The skip branch of that number.

    Raises:
        ValueError: the U-Net has none so deep.
        TypeError: the U-Net cannot be cut.
    """
    branches = skip_branches(unet)
    if number >= len(branches):
        raise ValueError(
            f"cache_branch_id must be from 0 to {len(branches) - 1} for this {type(unet).__name__}, got {number}"
        )
    return branches[number]


def _is_compiled(unet: nn.Module) -> bool:
    return isinstance(unet, torch._dynamo.OptimizedModule) or any(
        module._compiled_call_impl is not None for module in unet.modules()
    )


def _structure(unet: nn.Module) -> list[nn.Module | None]:
    modules: list[nn.Module | None] = [cast(nn.Module | None, unet.mid_block)]
    for block in (*down_blocks(unet), *up_blocks(unet)):
        modules.append(block)
        for layers in layer_lists(block).values():
            modules.extend(layers)
    return modules


def _names_of_sample_and_timestep(unet: nn.Module) -> tuple[str, str]:
    # Off the class: offloading replaces `forward` on the instance.
    names = list(inspect.signature(type(unet).forward).parameters)
    return names[1], names[2]


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], index: int, name: str) -> Any:
    if index < len(args):
        return args[index]
    if name not in kwargs:
        raise TypeError(f"the U-Net was called without its argument {name!r}")
    return kwargs[name]
