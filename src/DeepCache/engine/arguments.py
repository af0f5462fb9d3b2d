"""The arguments of a denoiser's call: the sample, the timestep, the conditioning, and whether it needs a gradient."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable, Hashable
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import CheckpointFunction

from DeepCache.engine.compilation import static_timestep
from DeepCache.engine.guidance import tensors_in
from DeepCache.engine.layouts.layout import Args, Kwargs

SlotName = Callable[[Args, Kwargs], Hashable]
"""Names the purpose of a call, given its positional and keyword arguments."""

GRADIENT = "a gradient is required"
TRAINING = "the denoiser is in training mode (call its eval())"

# What guidance changes from call to call, in this order: the text, the class, or the image where there is no text.
_CONDITIONINGS = ("encoder_hidden_states", "context", "class_labels", "y", "added_cond_kwargs")
_CHECKPOINT = CheckpointFunction.forward.__code__


class CallArguments:
    """Finds the sample, the timestep and the conditioning among the arguments of a denoiser.

    The sample is the first argument. The timestep is the argument called `timestep` or `timesteps`, else those whose
    names begin with `timestep` (UniDiffuser has one for images and one for text), else the second.

    Example:
        >>> class Denoiser(nn.Module):
        ...     def forward(self, noisy, context, timestep): ...
        >>> CallArguments(Denoiser()).timestep((1, 2), {"timestep": 3})
        3
    """

    def __init__(self, denoiser: nn.Module) -> None:
        # Of the class, since offloading replaces `forward` on the instance.
        parameters = list(inspect.signature(type(denoiser).forward).parameters.values())[1:]
        names = [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
        timesteps = [name for name in names if name in ("timestep", "timesteps")]
        timesteps = timesteps or [name for name in names if name.startswith("timestep")] or names[1:2]
        if not names or (not timesteps and len(parameters) == len(names)):
            kind = type(denoiser).__name__
            raise TypeError(f"DeepCache needs a denoiser that is called with a sample and a timestep; {kind} is not")
        self._sample = (0, names[0])
        self._timesteps = [(names.index(name), name) for name in timesteps] or [(1, "timestep")]
        # A keyword-only argument has an index beyond the last positional one.
        self._conditionings = [(names.index(name) if name in names else sys.maxsize, name) for name in _CONDITIONINGS]

    def sample(self, args: Args, kwargs: Kwargs) -> torch.Tensor:
        sample: torch.Tensor = _argument(args, kwargs, *self._sample)
        return sample

    def timestep(self, args: Args, kwargs: Kwargs) -> Any:
        """The timestep; of several, the first that is a tensor, since a plain number is a constant."""
        values = [_argument(args, kwargs, *place) for place in self._timesteps]
        return next((value for value in values if isinstance(value, torch.Tensor)), values[0])

    def name_or_conditioning(
        self, args: Args, kwargs: Kwargs, name: SlotName | None
    ) -> tuple[Hashable, torch.Tensor | None]:
        """The name that the program gives the call; without one, the first tensor of the conditioning, if any."""
        if name is not None:
            return name(args, kwargs), None
        for index, key in self._conditionings:
            tensor = next(tensors_in(args[index] if index < len(args) else kwargs.get(key)), None)
            if tensor is not None:
                return None, tensor
        return None, None

    def with_static_timestep(
        self, args: Args, kwargs: Kwargs, denoiser: nn.Module, sample: torch.Tensor
    ) -> tuple[Args, Kwargs]:
        """The arguments with the timestep in the form that a graph needs, see `static_timestep`."""
        for index, name in self._timesteps:
            steady = static_timestep(_argument(args, kwargs, index, name), denoiser, sample)
            if index < len(args):
                args = (*args[:index], steady, *args[index + 1 :])
            else:
                kwargs = kwargs | {name: steady}
        return args, kwargs


def _argument(args: Args, kwargs: Kwargs, index: int, name: str) -> Any:
    if index < len(args):
        return args[index]
    if name not in kwargs:
        raise TypeError(f"the denoiser was called without its argument {name!r}")
    return kwargs[name]


def why_differentiated(denoiser: nn.Module, args: Args, kwargs: Kwargs) -> str:
    """Why a gradient may be taken through a call, so that it runs the whole denoiser and is not a step of a run.

    Under `no_grad` the check takes the same time for any denoiser.
    """
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return GRADIENT
    if not torch.is_grad_enabled():
        return GRADIENT if _is_checkpointed() else ""
    if denoiser.training:
        return TRAINING
    tensors = itertools.chain(tensors_in([args, kwargs]), denoiser.parameters())
    return GRADIENT if any(tensor.requires_grad for tensor in tensors) else ""


def _is_checkpointed() -> bool:
    """Whether reentrant checkpointing makes the call: it runs under `no_grad` first, and with gradients later."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is _CHECKPOINT:
            return True
        frame = frame.f_back
    return False
