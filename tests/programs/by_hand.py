"""The expected output of DeepCache: a copy of the U-Net in which a hook inserts the deep feature of an earlier call.

All tests cut at branch 0, where a shallow step runs the first convolution and the last layer of the last up block.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler
from torch import nn

__all__ = ["ByHand", "Calls", "PlainCopy", "sampled_to_the_end", "scheduled", "tensor_of", "text"]


def text(seed: int, batch: int = 1) -> torch.Tensor:
    """Random prompt embeddings."""
    return torch.randn(batch, 3, 8, generator=torch.Generator().manual_seed(seed))


def tensor_of(output: Any) -> torch.Tensor:
    """The prediction in the output of a U-Net."""
    return output if isinstance(output, torch.Tensor) else output[0]


def sampled_to_the_end() -> EulerDiscreteScheduler:
    """A scheduler after a complete run."""
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    scheduler.is_scale_input_called = True
    for t in scheduler.timesteps:
        scheduler.step(torch.ones(1), t, torch.ones(1))
    return scheduler


class PlainCopy:
    """A copy of a U-Net, made before DeepCache is applied. `given` replaces the deep feature of a call if it is set."""

    def __init__(self, unet: nn.Module) -> None:
        self.unet = copy.deepcopy(unet)
        self.feature: torch.Tensor | None = None
        self.given: torch.Tensor | None = None
        _last_but_one(self.unet).register_forward_hook(self._put_in)

    def full(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The output of a full step."""
        with torch.no_grad():
            return tensor_of(self.unet(*args, **kwargs)).clone()

    def shallow(self, feature: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The output of a shallow step with this deep feature."""
        self.given = feature
        try:
            return self.full(*args, **kwargs)
        finally:
            self.given = None

    def _put_in(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        self.feature = tensor_of(output).detach().clone()
        if self.given is None:
            return None
        if isinstance(output, torch.Tensor):
            return self.given
        return (self.given, *output[1:]) if isinstance(output, tuple) else type(output)(self.given)


class ByHand(PlainCopy):
    """A copy of a U-Net whose calls are full and shallow steps of a repeating pattern."""

    def __init__(self, unet: nn.Module, pattern: str) -> None:
        super().__init__(unet)
        self._pattern, self._calls, self._kept = pattern, 0, None
        self.unet.register_forward_pre_hook(self._begin)
        self.unet.register_forward_hook(self._end)

    def _begin(self, *_: Any) -> None:
        full = self._pattern[self._calls % len(self._pattern)] == "F"
        self.given = None if full else self._kept

    def _end(self, *_: Any) -> None:
        self._kept = self.feature if self.given is None else self._kept
        self._calls += 1


def scheduled(unet: nn.Module, pattern: str) -> nn.Module:
    """A copy of a U-Net whose calls follow a pattern, see `ByHand`."""
    return ByHand(unet, pattern).unet


class Calls:
    """Calls a U-Net and records one sign per call: `F` if the output is that of the plain U-Net, `.` if it is that of a
    shallow step with the deep feature of the latest full call for the same purpose, `,` for that of an earlier one, and
    `X` for anything else. `called` is a wrapper around the U-Net.
    """

    def __init__(self, unet: nn.Module, called: Any = None) -> None:
        self.unet = unet if called is None else called
        self.plain = PlainCopy(unet)
        self._signs = ""
        self._features: dict[Any, list[torch.Tensor]] = {}

    def __call__(self, *args: Any, purpose: Any = None, **kwargs: Any) -> torch.Tensor:
        full = self.plain.full(*args, **kwargs)
        feature, kept = self.plain.feature, self._features.setdefault(purpose, [])
        output = tensor_of(self.unet(*args, **kwargs))
        if torch.equal(output, full):
            self._signs += "F"
            kept.insert(0, feature)
        else:
            shallow = (self.plain.shallow(each, *args, **kwargs) for each in kept)
            number = next((number for number, each in enumerate(shallow) if torch.equal(output, each)), None)
            self._signs += "X" if number is None else "," if number else "."
        return output.detach().clone()

    def take(self) -> str:
        """The signs of the calls since the last `take`."""
        signs, self._signs = self._signs, ""
        return signs


def _last_but_one(unet: nn.Module) -> nn.Module:
    """The module that makes the deep feature of branch 0."""
    block = unet.up_blocks[-1]
    for name in ("motion_modules", "attentions", "resnets", "layers"):
        layers = getattr(block, name, None)
        if layers is not None and layers[len(layers) - 2] is not None:
            return layers[len(layers) - 2]
    raise AssertionError("a block without layers")
