"""The arguments of a denoiser's call that the engine reads: the sample, the timestep and the conditioning."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import nn

from DeepCache.engine.compilation import static_timestep
from DeepCache.engine.guidance import tensors_in

__all__ = ["CallArguments", "SlotName"]

SlotName = Callable[[tuple[Any, ...], dict[str, Any]], Hashable]
"""Names what a call is for by its positional and keyword arguments."""

# What guidance exchanges from call to call, in this order: the text, the class, or the image where there is no text.
_CONDITIONINGS = ("encoder_hidden_states", "context", "class_labels", "y", "added_cond_kwargs")


class CallArguments:
    """Finds the sample, the timestep and the conditioning among the arguments of a denoiser.

    The sample is the first argument. The timestep is the one called `timestep` or `timesteps`, else those whose names
    begin with `timestep` (UniDiffuser has one for images and one for text), else the second.

    Args:
        denoiser: the denoiser, of whose class the signature is read.

    Raises:
        TypeError: it takes no sample and timestep.

    Example:
        >>> class Denoiser(nn.Module):
        ...     def forward(self, noisy, context, timestep): ...
        >>> CallArguments(Denoiser()).timestep((1, 2), {"timestep": 3})
        3
    """

    def __init__(self, denoiser: nn.Module) -> None:
        # Off the class: offloading replaces `forward` on the instance.
        parameters = list(inspect.signature(type(denoiser).forward).parameters.values())[1:]
        names = [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
        timesteps = [name for name in names if name in ("timestep", "timesteps")]
        timesteps = timesteps or [name for name in names if name.startswith("timestep")] or names[1:2]
        if not names or (not timesteps and len(parameters) == len(names)):
            kind = type(denoiser).__name__
            raise TypeError(f"DeepCache needs a denoiser that is called with a sample and a timestep; {kind} is not")
        self._sample = (0, names[0])
        self._timesteps = [(names.index(name), name) for name in timesteps] or [(1, "timestep")]
        # Beyond the last argument by position where the denoiser takes it by name alone.
        self._conditionings = [(names.index(name) if name in names else sys.maxsize, name) for name in _CONDITIONINGS]

    def sample(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """The sample.

        Raises:
            TypeError: the denoiser was called without it.
        """
        sample: torch.Tensor = _argument(args, kwargs, *self._sample)
        return sample

    def timestep(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The timestep; of several, the first that is a tensor, since a number is one that stays.

        Raises:
            TypeError: the denoiser was called without it.
        """
        first = _argument(args, kwargs, *self._timesteps[0])
        others = self._timesteps[1:]
        if not others or isinstance(first, torch.Tensor):
            return first
        values = (_argument(args, kwargs, *place) for place in others)
        return next((value for value in values if isinstance(value, torch.Tensor)), first)

    def conditioning(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """What the call is conditioned on: the first tensor of the text, the class or the image; None without any."""
        for index, name in self._conditionings:
            tensor = next(tensors_in(args[index] if index < len(args) else kwargs.get(name)), None)
            if tensor is not None:
                return tensor
        return None

    def name_or_conditioning(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], name: SlotName | None
    ) -> tuple[Hashable, torch.Tensor | None]:
        """What a call is for, as the program names it; without names, what it is conditioned on."""
        return (None, self.conditioning(args, kwargs)) if name is None else (name(args, kwargs), None)

    def with_static_timestep(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], denoiser: nn.Module, sample: torch.Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with the timestep as a graph takes it, see `static_timestep`."""
        for index, name in self._timesteps:
            steady = static_timestep(_argument(args, kwargs, index, name), denoiser, sample)
            if index < len(args):
                args = (*args[:index], steady, *args[index + 1 :])
            else:
                kwargs = kwargs | {name: steady}
        return args, kwargs


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], index: int, name: str) -> Any:
    if index < len(args):
        return args[index]
    if name not in kwargs:
        raise TypeError(f"the denoiser was called without its argument {name!r}")
    return kwargs[name]
