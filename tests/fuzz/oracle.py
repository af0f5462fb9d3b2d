"""The expected output of a call, computed on a copy of the denoiser without DeepCache."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def prediction(output: Any) -> torch.Tensor:
    """The tensor in the output of a denoiser."""
    tensor: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return tensor


def gradients(denoiser: nn.Module, sample: torch.Tensor, timestep: Any, text: torch.Tensor) -> list[Any]:
    """The gradients of the sum of a prediction: for the sample, for the conditioning, and for every parameter."""
    sample, text = sample.clone().requires_grad_(), text.clone().requires_grad_()
    denoiser.zero_grad()
    prediction(denoiser(sample, timestep, text)).sum().backward()
    found = [sample.grad, text.grad, *(parameter.grad for parameter in denoiser.parameters())]
    return [None if each is None else each.clone() for each in found]


class Oracle:
    """The whole denoiser; the output of its module `producer` can be replaced by a deep feature."""

    def __init__(self, denoiser: nn.Module, producer: str) -> None:
        self.denoiser = copy.deepcopy(denoiser)
        self._replaced: torch.Tensor | None = None
        self._feature: torch.Tensor | None = None
        self.denoiser.get_submodule(producer).register_forward_hook(self._replace)

    @torch.no_grad()
    def full(self, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The prediction of a full step and the deep feature."""
        output = prediction(self.denoiser(*args))
        assert self._feature is not None
        return output, self._feature

    @torch.no_grad()
    def shallow(self, feature: torch.Tensor, *args: Any) -> torch.Tensor:
        """The prediction of a shallow step with this deep feature."""
        self._replaced = feature
        try:
            return prediction(self.denoiser(*args))
        finally:
            self._replaced = None

    def _replace(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        self._feature = prediction(output).detach().clone()
        if self._replaced is None:
            return None
        return (self._replaced.clone(),) if isinstance(output, tuple) else self._replaced.clone()
