"""The patch of a denoiser for a shallow step: the same module with some children hidden for the length of one call.

A denoiser loops over its blocks, so a shallow step only has to see shorter lists. The patch sets such lists as instance
attributes, which Python finds before a module's registered children. What is registered (parameters, buffers,
`state_dict`, `to`) is never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from DeepCache.engine.layouts import CachedFeature, Layout, SkipBranch
from DeepCache.engine.layouts.layout import Args, Kwargs

_ABSENT = object()


class ClassSwap:
    """Gives modules, for the length of a call, a class that differs from their own in nothing but its identity.

    `torch.compile` guards on the class first, and not on hooks or on attributes that hide a child. The swap keeps the
    graphs of one kind of step from being used for another kind, or for another denoiser.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = list(modules)
        self._classes: dict[Any, Any] = {}
        self._before: list[tuple[nn.Module, Any]] = []

    def apply(self) -> None:
        for module in self._modules:
            kind: Any = type(module)
            if kind not in self._classes:
                names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
                self._classes[kind] = type(kind.__name__, (kind,), names)
            self._before.append((module, kind))
            object.__setattr__(module, "__class__", self._classes[kind])

    def remove(self) -> None:
        """Restores the classes; safe after a partial `apply` or none."""
        while self._before:
            module, kind = self._before[-1]
            object.__setattr__(module, "__class__", kind)
            self._before.pop()

    def __getstate__(self) -> dict[str, Any]:
        # Classes made at run time cannot be pickled.
        return self.__dict__ | {"_classes": {}}


def refuse_further_states(module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> None:
    """A forward hook that raises where a block returns more than its hidden states, as those of IDM-VTON do."""
    if not isinstance(output, tuple) or len(output) < 2:
        return
    # A mid block may be called with the hidden states of two paths (ControlNet-XS), see `CachedFeature`.
    if len(output) > sum(name.startswith("hidden_states") for name in kwargs):
        raise TypeError(
            f"DeepCache cannot cut this denoiser: its {type(module).__name__} returns {len(output)} values, and a "
            "shallow step has the hidden states alone. Disable DeepCache for it"
        )


class FeatureCapture:
    """A forward hook that keeps a copy of the latest output of the modules it is registered on.

    A layer is several modules (resnet, attention, motion module, …). The hook is on each of them and the last one to
    run wins, so that their order need not be known.

    Attributes:
        open: whether outputs are kept. Modules that another U-Net borrows (Versatile Diffusion) are ignored there.
    """

    def __init__(self) -> None:
        # A fixed attribute rather than an entry of a dictionary: torch.compile would guard on the keys.
        self.tensor: torch.Tensor | None = None
        self.open = False

    def __call__(self, module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> None:
        if not self.open:
            return
        refuse_further_states(module, args, kwargs, output)
        tensor = output if isinstance(output, torch.Tensor) else output[0]
        # A copy, since FreeU and adapters change hidden states in place.
        self.tensor = tensor.detach().clone()

    def take(self) -> torch.Tensor | None:
        """Returns the tensor and forgets it."""
        tensor, self.tensor = self.tensor, None
        return tensor


class ShallowPatch:
    """The patch of a denoiser for shallow steps at one skip branch, and the capture of the deep feature for it.

    Attributes:
        branch: the skip branch.
        owners: the modules that have a child hidden, the denoiser among them.
        kept: the entries of their lists that a shallow step runs, some of them in part.
        hidden: the entries that it does not run.
        replaced: the entries that the stored deep feature replaces.
        capture: keeps the deep feature of a step that renews it.
        tapped: the modules that the capture is to be registered on.
        buffers: see `buffered`.
        grouped: whether any block is offloaded in a group, found out at the start of a run.
    """

    def __init__(self, layout: Layout, branch: SkipBranch) -> None:
        self._layout, self.branch = layout, branch
        self._cached = CachedFeature()
        self._overlays = list(layout.overlays(branch, self._cached))
        self._originals: list[tuple[dict[str, Any], str, Any]] = []
        self.owners = list(dict.fromkeys(overlay.owner for overlay in self._overlays))
        self._swap = ClassSwap(self.owners)
        entries = self._entries()
        shown = {entry for overlay in self._overlays for entry in _flat(overlay.value)}
        self.kept = [entry for entry in entries if entry in shown]
        self.hidden = [entry for entry in entries if entry not in shown]
        places = [overlay for overlay in self._overlays if overlay.value is self._cached]
        self.replaced = [entry for owner, name, _ in places for entry in _flat(getattr(owner, name))]
        self.capture, self.tapped = FeatureCapture(), list(layout.tapped(branch))
        self.buffers: dict[Any, torch.Tensor] = {}
        self.grouped = False

    @property
    def deep_attention(self) -> list[nn.Module]:
        """The attention layers, those with a processor, that a shallow step does not run."""
        inside = dict.fromkeys(module for entry in self.hidden for module in entry.modules())
        return [module for module in inside if hasattr(module, "processor")]

    def parts(self) -> list[nn.Module]:
        """The modules that the patch was made of, as they are now."""
        return [*self._entries(), *self._layout.tapped(self.branch)]

    def apply(self, feature: Any, meanwhile: Callable[[], None] | None = None) -> None:
        """Hides the deep part; where it would run, `meanwhile` is called and `feature` returned."""
        self._cached.hold(feature, meanwhile)
        for owner, name, value in self._overlays:
            attributes = owner.__dict__
            # A mid block that is None is an attribute already.
            self._originals.append((attributes, name, attributes.get(name, _ABSENT)))
            attributes[name] = value
        self._swap.apply()

    def remove(self) -> None:
        """Shows the deep part again; safe after a partial `apply` or none."""
        while self._originals:
            attributes, name, original = self._originals[-1]
            if original is _ABSENT:
                attributes.pop(name, None)
            else:
                attributes[name] = original
            self._originals.pop()
        self._swap.remove()
        self._cached.hold(None)

    def narrow(self, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """The arguments of a call without those of the deep part."""
        return self._layout.narrow_call(self.branch, args, kwargs)

    def buffered(self, feature: torch.Tensor) -> torch.Tensor:
        """The deep feature in a buffer with a fixed address: a CUDA graph reads a tensor where it was at capture, and
        is captured again when it has moved."""
        key = (feature.shape, feature.dtype, feature.device)
        if key not in self.buffers:
            # A later run need not be in inference mode where this one is.
            with torch.inference_mode(False):
                self.buffers[key] = torch.empty_like(feature)
        return self.buffers[key].copy_(feature)

    def _entries(self) -> list[nn.Module]:
        return [entry for owner, name, _ in self._overlays for entry in _flat(getattr(owner, name, None))]


def _flat(value: nn.Module | None) -> list[nn.Module]:
    """A module, or those in a list of modules or of lists of them."""
    if isinstance(value, nn.ModuleList):
        return [entry for each in value for entry in _flat(each)]
    return [] if value is None else [value]
