"""The base class of layouts: where and how a family of denoisers is cut."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

Args = tuple[Any, ...]
"""The positional arguments of a call."""
Kwargs = dict[str, Any]
"""The keyword arguments of a call."""


@dataclass(frozen=True)
class SkipBranch:
    """One skip connection at which a denoiser can be cut.

    Args:
        number: the `cache_branch_id`, counted from the shallowest.
        name: where in the denoiser the skip connection begins.
    """

    number: int
    name: str


class Overlay(NamedTuple):
    """An attribute that a shallow step replaces by another value for the length of one call.

    Args:
        owner: the module that has the attribute.
        name: the attribute: a child module, a `nn.ModuleList` of them, or None.
        value: the replacement: a list of the entries that stay, the `CachedFeature`, or None.
    """

    owner: nn.Module
    name: str
    value: nn.Module | None


class Layout(ABC):
    """Where a family of denoisers can be cut, and how.

    The constructor raises a `TypeError` with the reason if the denoiser is of the family and still cannot be cut.

    Attributes:
        denoiser: the module.
        branches: where it can be cut, from the shallowest to the deepest.
    """

    branches: tuple[SkipBranch, ...]
    prompt_half: ClassVar[int] = 1
    """The half of a guided batch that has the prompt, 0 or 1, as the pipelines of the family arrange it."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        # Of the class, since offloading replaces `forward` on the instance.
        parameters = list(signature(type(denoiser).forward).parameters.values())[1:]
        self._named = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]

    @classmethod
    @abstractmethod
    def recognises(cls, denoiser: nn.Module) -> bool:
        """Whether a module is of the family, judged by its structure only."""

    @abstractmethod
    def overlays(self, branch: Any, cached: CachedFeature) -> Iterable[Overlay]:
        """The attributes that a shallow step at a branch hides. `cached` replaces the last module that does not run."""

    @abstractmethod
    def tapped(self, branch: Any) -> Iterable[nn.Module]:
        """The modules whose last to run on a full step returns the deep feature."""

    def narrow(self, branch: Any, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """The arguments of a call without those of the deep part, such as a ControlNet's residuals for it. All but the
        first two are passed by name. The given lists and dictionaries are not changed."""
        return args, kwargs

    def narrow_call(self, branch: Any, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """`narrow`, with the arguments after the sample and the timestep by name if the denoiser has names for them."""
        if len(args) > 2 and len(args) <= len(self._named):
            args, kwargs = args[:2], dict(zip(self._named[2:], args[2:], strict=False)) | kwargs
        return self.narrow(branch, args, kwargs)


class CachedFeature(nn.Module):
    """Returns the stored deep feature, for any arguments, where the deep part would run.

    It can be called, or iterated over as a block of layers. A mid block that is called with the hidden states of two
    paths (ControlNet-XS) returns both; those of the second path are unchanged, since nothing after the mid block uses
    them.
    """

    # Diffusers' U-Nets read this attribute of a mid block before they call it.
    has_cross_attention = False

    def __init__(self) -> None:
        super().__init__()
        self.tensor: torch.Tensor | None = None
        # Called where the deep layers would run.
        self.meanwhile: Any = None

    def hold(self, tensor: torch.Tensor | None, meanwhile: Any = None) -> None:
        """Sets what the next call returns, and what it calls."""
        # Not by `nn.Module.__setattr__`, which takes longer than the rest of the patch.
        self.__dict__.update(tensor=tensor, meanwhile=meanwhile)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        assert self.tensor is not None
        if self.meanwhile is not None:
            self.meanwhile()
        _, *others = [value for name, value in kwargs.items() if name.startswith("hidden_states")] or [None]
        return (self.tensor.clone(), *others) if others else self.tensor.clone()

    def __iter__(self) -> Any:
        yield self


def own(module: nn.Module, name: str) -> Any:
    """An attribute of the module itself; None if it has none or only forwards that of an inner module (peft,
    DeepSpeed)."""
    return getattr(module, name) if name in module._modules or hasattr(type(module), name) else None


def cannot_cut(denoiser: nn.Module, reason: str) -> TypeError:
    """The error for a denoiser that is of a known family and cannot be cut."""
    return TypeError(f"DeepCache cannot cut a {type(denoiser).__name__}: {reason}")
