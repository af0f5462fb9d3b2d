"""DeepCache on one U-Net: runs each call as a full or as a shallow step."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.attention import AttentionCalls, Listener, may_write
from DeepCache.engine.branches import SkipBranch, down_blocks, layer_lists, skip_branches, up_blocks
from DeepCache.engine.feature import DeepFeature, FeatureTap
from DeepCache.engine.narrowing import Narrowing, deep_attention_layers, deep_feature_modules
from DeepCache.engine.offload import load_groups
from DeepCache.engine.stats import TrajectoryRecord, TrajectoryStats
from DeepCache.engine.trajectory import Moment, Trajectory

__all__ = ["UnetCache", "branch_of"]

_END_OF_RUN = "_reset_stateful_cache"


class UnetCache:
    """DeepCache on one U-Net.

    Args:
        unet: the U-Net.
        config: the settings.
        pipe: the pipeline that it belongs to, which has, as a rule, a `scheduler`.

    Raises:
        TypeError: the U-Net cannot be cut.
        ValueError: the branch is too deep for it.
    """

    def __init__(self, unet: nn.Module, config: DeepCacheConfig, pipe: Any) -> None:
        self.unet = unet
        self._config = config
        self._pipe = pipe
        self._trajectory = Trajectory()
        self._features: dict[int, DeepFeature] = {}
        self._handles: list[RemovableHandle] = []
        self._tap_handles: list[RemovableHandle] = []
        self._last_slot = 0
        self._call: tuple[Moment | None, torch.Tensor, bool] | None = None
        self._listening: list[nn.Module] = []
        self._listener: Listener | None = None
        self._groups: list[Any] = []
        self._names = _names_of_sample_and_timestep(unet)
        self._cut()

    @property
    def attached(self) -> bool:
        return bool(self._handles)

    @property
    def stats(self) -> TrajectoryStats:
        return self._record.stats(self.unet)

    def configure(self, config: DeepCacheConfig) -> None:
        """Changes the settings; the branch is one that the U-Net has."""
        self._config = config
        self.end_run()
        self._cut()
        if self.attached:
            self._tap()

    def attach(self) -> None:
        """Puts the hooks on; without effect where they are."""
        if self.attached:
            return
        self._cut()
        self._handles = [
            self.unet.register_forward_pre_hook(self._before_call, with_kwargs=True),
            self.unet.register_forward_hook(self._after_call, always_call=True),
        ]
        self._tap()
        # Diffusers calls this on every component of a pipeline at the end of a run.
        self.unet.__dict__[_END_OF_RUN] = self.end_run

    def detach(self) -> None:
        """Takes the hooks off and leaves the U-Net as it was found; without effect where they are not on."""
        self.end_run()
        for handle in (*self._handles, *self._tap_handles):
            handle.remove()
        if self.attached:
            del self.unet.__dict__[_END_OF_RUN]
        self._handles, self._tap_handles = [], []

    def end_run(self) -> None:
        """Forgets the trajectory and its deep features."""
        self._restore()
        self._call = None
        self._features.clear()
        self._tap_of_feature.take()
        self._attention_calls()
        self._trajectory.reset()

    def _cut(self) -> None:
        """Prepares the cut of the configured branch; nothing on the U-Net changes yet."""
        self._branch = branch_of(self.unet, self._config.cache_branch_id)
        self._structure = _structure(self.unet)
        self._narrowing = Narrowing(self.unet, self._branch)
        self._deep_attention = deep_attention_layers(self.unet, self._branch)
        self._tap_of_feature = FeatureTap()
        self._record = TrajectoryRecord(self._branch)

    def _tap(self) -> None:
        for handle in self._tap_handles:
            handle.remove()
        modules = deep_feature_modules(self.unet, self._branch) if self._config.schedule.caches else []
        self._tap_handles = [module.register_forward_hook(self._tap_of_feature) for module in modules]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before_call(
        self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._call is not None:
            # The call before this one never came back (Ctrl-C inside it): nothing it left is to be trusted.
            self.end_run()
        sample, timestep = (_argument(args, kwargs, index, name) for index, name in enumerate(self._names))
        if sample.requires_grad and torch.is_grad_enabled():
            # A gradient that is wanted comes from the whole U-Net, and the call is no step of the trajectory.
            self._call = (None, sample, True)
            return None
        moment = self._trajectory.locate(timestep, getattr(self._pipe, "scheduler", None))
        if moment.starts:
            self._start_trajectory()
        if moment.slot == 0 and len(self._features) > self._last_slot + 1:
            # A slot that the last step did not have is another one when it comes back.
            self._features = {slot: feature for slot, feature in self._features.items() if slot <= self._last_slot}
        self._last_slot = moment.slot
        feature = self._features.get(moment.slot)
        full = (
            feature is None
            # A full step that the pipeline left out, or that had no such slot, is made up for.
            or any(map(self._config.schedule.is_full, range(feature.step + 1, moment.step + 1)))
            or moment.mixed
            or not feature.fits(sample)
        )
        self._record.note_call(moment.slot, full, sample, args, kwargs)
        self._call = (moment, sample, full)
        if full or feature is None:
            if self._config.schedule.caches:
                self._tap_of_feature.open = True
                self._listener = Listener(self._listening) if self._listening else None
            return None
        meanwhile, others = None, []
        if feature.attention:
            others = [*down_blocks(unet), *up_blocks(unet)]
            meanwhile = partial(feature.attention.repeat, kwargs.get("cross_attention_kwargs") or {})
            self._record.note_attention()
        self._groups = load_groups(self._narrowing.blocks, others)
        self._narrowing.apply(feature.tensor, meanwhile)
        return args, self._narrowing.narrow_kwargs(kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after_call(self, unet: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._call is None or output is None:
            # The U-Net raised.
            self.end_run()
            return
        (moment, sample, full), self._call = self._call, None
        if moment is None:
            return
        self._restore()
        if full and self._config.schedule.caches:
            self._store(moment, sample)
        if moment.ends or moment.mixed:
            self._features.pop(moment.slot, None)

    def _restore(self) -> None:
        self._narrowing.undo()
        self._tap_of_feature.open = False
        while self._groups:
            self._groups.pop().offload_()

    def _start_trajectory(self) -> None:
        self._features.clear()
        # Somebody may have replaced a block or a layer since the last run.
        if self._structure != _structure(self.unet):
            self._cut()
            self._tap()
        self._listening = [layer for layer in self._deep_attention if may_write(layer)]
        self._record = TrajectoryRecord(self._branch)

    def _store(self, moment: Moment, sample: torch.Tensor) -> None:
        tensor, attention = self._tap_of_feature.take(), self._attention_calls()
        if tensor is None:
            raise RuntimeError(
                f"no module of {self._branch.name} ran on a full step, so there is no deep feature to keep; "
                "this U-Net does not call its layers as modules"
            )
        made_for = (sample.shape, sample.dtype, sample.device)
        self._features[moment.slot] = DeepFeature(tensor, moment.step, made_for, attention)
        self._record.note_bytes(sum(feature.bytes for feature in self._features.values()))

    def _attention_calls(self) -> AttentionCalls:
        """What was heard during the call, and stops listening."""
        listener, self._listener = self._listener, None
        return listener.stop() if listener is not None else AttentionCalls([])


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
