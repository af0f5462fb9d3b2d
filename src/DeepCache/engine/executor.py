"""Runs one call of a denoiser as a full or as a shallow step."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from DeepCache.config import CompileMode
from DeepCache.engine.attention import AttentionCalls, Listener
from DeepCache.engine.compilation import ISOLATED, Compilation
from DeepCache.engine.layouts import layout_of
from DeepCache.engine.layouts.layout import Kwargs
from DeepCache.engine.offload import are_grouped, load_groups
from DeepCache.engine.patch import ClassSwap, ShallowPatch, refuse_further_states
from DeepCache.engine.torch_versions import bytes_of


class Executor:
    """The patches of one denoiser. `full` and `shallow` change the denoiser for the next call; `end` restores it."""

    def __init__(self, denoiser: nn.Module, branches: Iterable[int], compile_mode: CompileMode = "none") -> None:
        if compile_mode != "none" and not ISOLATED:
            # Graphs that match nothing any more would count towards the limit.
            torch.compiler.reset()
        self._compilation = Compilation(denoiser, compile_mode)
        self.layout = layout_of(denoiser)
        self.patches = {number: ShallowPatch(self.layout, self.layout.branches[number]) for number in branches}
        patches = self.patches.values()
        # A class for full steps too: see `ClassSwap`.
        self._swap = ClassSwap(dict.fromkeys(owner for patch in patches for owner in patch.owners))
        self._parts = self._current_parts()
        self.modules = [module for module in denoiser.modules() if module is not denoiser]
        self.attention = [module for module in self.modules if hasattr(module, "processor")]
        self._deep = {number: patch.deep_attention for number, patch in self.patches.items()}
        self.deep_attention = list(dict.fromkeys(layer for layers in self._deep.values() for layer in layers))
        self._handles: list[RemovableHandle] = []
        self._patch: ShallowPatch | None = None
        self._listener: Listener | None = None
        self._groups: list[Any] = []

    @property
    def out_of_date(self) -> bool:
        """Whether a block or a layer has been replaced since the patches were made."""
        return self._parts != self._current_parts()

    @property
    def buffer_bytes(self) -> int:
        """Size of the buffers that compiled shallow steps read."""
        return sum(bytes_of(buffer) for patch in self.patches.values() for buffer in patch.buffers.values())

    def attach(self) -> None:
        """Registers the feature captures and compiles the denoiser's call. Idempotent."""
        if not self._handles:
            for patch in self.patches.values():
                for module in patch.tapped:
                    self._handles.append(module.register_forward_hook(patch.capture, with_kwargs=True))
                for module in patch.replaced:
                    self._handles.append(module.register_forward_hook(refuse_further_states, with_kwargs=True))
        self._compilation.attach()

    def detach(self) -> None:
        """Reverts `attach` and the changes of an interrupted call."""
        self.end()
        while self._handles:
            self._handles[-1].remove()
            self._handles.pop()
        self._compilation.detach()

    def begin_run(self) -> None:
        """Looks up what cannot change during a run."""
        for patch in self.patches.values():
            patch.grouped = are_grouped([*patch.kept, *patch.hidden])

    def full(self, listening: list[nn.Module] | None = None) -> None:
        """The next call runs the whole denoiser, and its deep features are kept; so are the calls of the attention
        layers in `listening`, see `attention_calls`."""
        for patch in self.patches.values():
            patch.capture.open = True
        self._listener = Listener(listening) if listening else None
        self._swap.apply()

    def shallow(
        self,
        number: int,
        feature: torch.Tensor,
        buffered: bool = False,
        attention: AttentionCalls | None = None,
        attention_kwargs: Kwargs | None = None,
    ) -> None:
        """The next call runs the layers above a skip branch.

        Args:
            number: the skip branch.
            feature: the deep feature.
            buffered: whether it is read from a buffer with a fixed address, as a CUDA graph requires.
            attention: calls of deep attention layers to repeat, with the `cross_attention_kwargs` below.
            attention_kwargs: the `cross_attention_kwargs` of this call.
        """
        for shallower, patch in self.patches.items():
            # The step computes the deep features of shallower branches.
            patch.capture.open = shallower < number
        patch, meanwhile = self.patches[number], None
        if attention:
            meanwhile = partial(attention.repeat, self._deep[number], attention_kwargs or {})
        if patch.grouped:
            called = [*patch.kept, *patch.hidden] if attention else []
            self._groups = load_groups(patch.kept, called)
        self._patch = patch
        patch.apply(patch.buffered(feature) if buffered else feature, meanwhile)

    def end(self) -> None:
        """Restores the denoiser, also after an interrupted call. Idempotent."""
        if self._patch is not None:
            self._patch.remove()
            self._patch = None
        self._swap.remove()
        for patch in self.patches.values():
            patch.capture.open = False
        while self._groups:
            self._groups.pop().offload_()

    def reset(self) -> None:
        """`end`, and drops what the call has recorded."""
        self.end()
        self.take()
        self.attention_calls()

    def take(self) -> dict[int, torch.Tensor]:
        """The deep features that the last call has renewed, by the number of their branch; each is returned once."""
        taken = {number: patch.capture.take() for number, patch in self.patches.items()}
        return {number: tensor for number, tensor in taken.items() if tensor is not None}

    def attention_calls(self) -> AttentionCalls:
        """The calls that were recorded during a full step; they are returned once."""
        listener, self._listener = self._listener, None
        return listener.stop() if listener is not None else AttentionCalls([])

    def _current_parts(self) -> list[nn.Module]:
        return [part for patch in self.patches.values() for part in patch.parts()]
