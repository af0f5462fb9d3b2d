"""Runs one call of a denoiser as a full or as a shallow step."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from DeepCache.config import CompileMode
from DeepCache.engine.attention import AttentionCalls, Listener
from DeepCache.engine.capture import refuse_further_states
from DeepCache.engine.compilation import ISOLATED, Compilation
from DeepCache.engine.cut import Cut
from DeepCache.engine.layouts import layout_of
from DeepCache.engine.offload import are_grouped, load_groups
from DeepCache.engine.patch import ClassSwap, ShallowPatch
from DeepCache.engine.torch_versions import bytes_of

__all__ = ["Executor"]


class Executor:
    """The cuts of one denoiser. `full()` and `shallow()` change the denoiser for the call that follows, and the context
    that both return changes it back.

    Args:
        denoiser: the denoiser.
        branches: numbers of the skip branches that shallow steps use.
        compile_mode: one of `COMPILE_MODES`.

    Attributes:
        layout: the layout of the denoiser.
        cuts: what it takes to cut at each branch, by its number.
        modules: all modules of the denoiser.
        attention: the attention layers, those with a processor.
        deep_attention: those that a shallow step at any of the branches leaves out.

    Raises:
        TypeError: the denoiser cannot be cut.
        ValueError: it cannot be compiled as asked for.

    Example:
        >>> from diffusers import UNet2DModel
        >>> unet = UNet2DModel(sample_size=8, block_out_channels=(32, 32), norm_num_groups=8,
        ...     down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"))
        >>> executor = Executor(unet, [1])
        >>> executor.attach()
        >>> with torch.no_grad(), executor.full():
        ...     full = unet(torch.ones(1, 3, 8, 8), 7).sample
        >>> feature = executor.take()[1]
        >>> with torch.no_grad(), executor.shallow(1, feature):
        ...     torch.equal(unet(torch.ones(1, 3, 8, 8), 7).sample, full)
        True
        >>> executor.detach()
    """

    def __init__(self, denoiser: nn.Module, branches: Iterable[int], compile_mode: CompileMode = "none") -> None:
        if compile_mode != "none" and not ISOLATED:
            # Graphs that nothing matches any more would count towards the limit.
            torch.compiler.reset()
        self._compilation = Compilation(denoiser, compile_mode)
        self.layout = layout_of(denoiser)
        self.cuts = {number: Cut(self.layout, self.layout.branches[number]) for number in branches}
        # A class for full steps too: see `ClassSwap`.
        self._swap = ClassSwap(dict.fromkeys(owner for cut in self.cuts.values() for owner in cut.patch.owners))
        self._parts = self._current_parts()
        self.modules = [module for module in denoiser.modules() if module is not denoiser]
        self.attention = [module for module in self.modules if hasattr(module, "processor")]
        self.deep_attention = list(dict.fromkeys(layer for cut in self.cuts.values() for layer in cut.deep_attention))
        self._handles: list[RemovableHandle] = []
        self._patch: ShallowPatch | None = None
        self._listener: Listener | None = None
        self._groups: list[Any] = []

    @property
    def out_of_date(self) -> bool:
        """Whether somebody has replaced a block or a layer since the cuts were made."""
        return self._parts != self._current_parts()

    @property
    def buffer_bytes(self) -> int:
        """Size of the buffers that compiled shallow steps read."""
        return sum(bytes_of(buffer) for cut in self.cuts.values() for buffer in cut.buffers.values())

    def attach(self) -> None:
        """Registers the feature captures and compiles the denoiser's call. Idempotent."""
        if not self._handles:
            for cut in self.cuts.values():
                for module in cut.tapped:
                    self._handles.append(module.register_forward_hook(cut.capture, with_kwargs=True))
                for module in cut.replaced:
                    self._handles.append(module.register_forward_hook(refuse_further_states, with_kwargs=True))
        self._compilation.attach()

    def detach(self) -> None:
        """Undoes `attach`, and what a call has left."""
        self.end()
        while self._handles:
            self._handles[-1].remove()
            self._handles.pop()
        self._compilation.detach()

    def begin_run(self) -> None:
        """Looks up what cannot change during a run."""
        for cut in self.cuts.values():
            cut.grouped = are_grouped([*cut.patch.kept, *cut.patch.hidden])

    def full(self, listening: list[nn.Module] | None = None) -> Executor:
        """The next call runs the whole denoiser, and its deep features are taken.

        Args:
            listening: attention layers whose calls are noted, see `attention_calls`.
        """
        for cut in self.cuts.values():
            cut.capture.open = True
        self._listener = Listener(listening) if listening else None
        self._swap.apply()
        return self

    def shallow(
        self,
        number: int,
        feature: torch.Tensor,
        buffered: bool = False,
        attention: AttentionCalls | None = None,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> Executor:
        """The next call runs the layers above a skip branch.

        Args:
            number: the skip branch.
            feature: the deep feature.
            buffered: whether it is read from a buffer that stays where it is, as a CUDA graph must.
            attention: calls of deep attention layers that are made again.
            attention_kwargs: the `cross_attention_kwargs` that they are made with.
        """
        for shallower, cut in self.cuts.items():
            # The step computes the deep features of shallower branches.
            cut.capture.open = shallower < number
        cut, meanwhile = self.cuts[number], None
        if attention:
            meanwhile = partial(attention.repeat, cut.deep_attention, attention_kwargs or {})
        if cut.grouped:
            called = [*cut.patch.kept, *cut.patch.hidden] if attention else []
            self._groups = load_groups(cut.patch.kept, called)
        self._patch = cut.patch
        cut.patch.apply(cut.buffered(feature) if buffered else feature, meanwhile)
        return self

    def end(self) -> None:
        """Changes the denoiser back, whatever the call has left. Safe where nothing was changed."""
        if self._patch is not None:
            self._patch.remove()
            self._patch = None
        self._swap.remove()
        for cut in self.cuts.values():
            cut.capture.open = False
        while self._groups:
            self._groups.pop().offload_()

    def reset(self) -> None:
        """`end`, and drops what the call has noted."""
        self.end()
        self.take()
        self.attention_calls()

    def take(self) -> dict[int, torch.Tensor]:
        """The deep features that the last call has renewed, by the number of their branch; each is handed over once."""
        taken = {}
        for number, cut in self.cuts.items():
            tensor = cut.capture.take()
            if tensor is not None:
                taken[number] = tensor
        return taken

    def attention_calls(self) -> AttentionCalls:
        """The calls that were noted during a full step, each handed over once."""
        listener, self._listener = self._listener, None
        return listener.stop() if listener is not None else AttentionCalls([])

    def __enter__(self) -> Executor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _current_parts(self) -> list[nn.Module]:
        return [part for cut in self.cuts.values() for part in cut.parts()]
