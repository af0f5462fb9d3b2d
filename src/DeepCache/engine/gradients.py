"""Whether a gradient may be taken through a call: such a call runs the whole denoiser, and is no step of a run."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import CheckpointFunction

from DeepCache.engine.guidance import tensors_in

__all__ = ["GRADIENT", "TRAINING", "why_differentiated"]

GRADIENT = "a gradient is wanted"
TRAINING = "the denoiser is in training mode (call its eval())"

_CHECKPOINT = CheckpointFunction.forward.__code__


def why_differentiated(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Why a gradient may be taken through a call; an empty string where none can be.

    One is wanted by any argument or parameter that requires it while gradients are enabled, by a denoiser in training
    mode then, and by a transform of `torch.func` or forward-mode differentiation. Reentrant checkpointing calls the
    denoiser under `no_grad` first, and later with gradients.

    Under `no_grad` this takes the same time for any denoiser. With gradients enabled it goes through the parameters
    until one requires a gradient.

    Args:
        denoiser: the denoiser.
        args: the positional arguments of the call.
        kwargs: the keyword arguments.

    Example:
        >>> layer = nn.Linear(2, 2).eval()
        >>> why_differentiated(layer, (torch.zeros(2),), {})
        'a gradient is wanted'
        >>> with torch.no_grad():
        ...     why_differentiated(layer, (torch.zeros(2),), {})
        ''
    """
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return GRADIENT
    if not torch.is_grad_enabled():
        return GRADIENT if _is_checkpointed() else ""
    if denoiser.training:
        return TRAINING
    wanted = any(tensor.requires_grad for tensor in tensors_in([args, kwargs])) or any(
        parameter.requires_grad for parameter in denoiser.parameters()
    )
    return GRADIENT if wanted else ""


def _is_checkpointed() -> bool:
    """Whether the call is made within reentrant checkpointing."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is _CHECKPOINT:
            return True
        frame = frame.f_back
    return False
