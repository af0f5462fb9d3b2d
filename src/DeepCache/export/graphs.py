"""Full and shallow steps as modules that map tensors to tensors, for tracing."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from DeepCache.engine.guidance import output_tensor
from DeepCache.engine.layouts import CachedFeature, SkipBranch, layout_of
from DeepCache.engine.patch import FeatureCapture
from DeepCache.errors import GraphError
from DeepCache.export.call import Call, paths_in

__all__ = ["DEEP_IN", "DEEP_OUT", "PREDICTION", "FullGraph", "ShallowGraph", "StepGraph"]

DEEP_IN, DEEP_OUT, PREDICTION = "deep_in", "deep_out", "prediction"
"""Names of the deep feature as input and output, and of the prediction."""


class StepGraph(nn.Module):
    """Base class of both kinds of step.

    Args:
        unet: the denoiser that runs.
        call: an example call.
        outside: the floating-point dtype of inputs and outputs; that of the call by default.

    Attributes:
        inputs: an example of each input, by name, in order.
        outputs: the names of the outputs, in order.
    """

    outputs: tuple[str, ...]

    def __init__(self, unet: nn.Module, call: Call, outside: torch.dtype | None) -> None:
        super().__init__()
        self.unet = unet
        self._call, self._outside = call, outside
        self._dtypes = {name: tensor.dtype for name, tensor in call.tensors.items()}
        self.inputs = {name: self._leave(tensor) for name, tensor in call.tensors.items()}

    def _enter(self, tensors: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        named = dict(zip(self.inputs, tensors, strict=True))
        return {name: tensor.to(self._dtypes[name]) for name, tensor in named.items()}

    def _leave(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self._outside is None or not tensor.is_floating_point() else tensor.to(self._outside)

    def _predict(self, keywords: dict[str, Any]) -> torch.Tensor:
        output = self.unet(**keywords)
        if not isinstance(output, torch.Tensor) and sum(isinstance(each, torch.Tensor) for each in tuple(output)) > 1:
            raise GraphError(f"a graph has one prediction, and this {type(self.unet).__name__} returns several")
        return output_tensor(output)


class FullGraph(StepGraph):
    """A full step: returns the prediction and the deep feature of a branch."""

    outputs = (PREDICTION, DEEP_OUT)

    def __init__(self, unet: nn.Module, branch: SkipBranch, call: Call, outside: torch.dtype | None = None) -> None:
        super().__init__(unet, call, outside)
        self._capture = FeatureCapture()
        self._tapped = list(layout_of(unet).tapped(branch))

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        handles = [module.register_forward_hook(self._capture, with_kwargs=True) for module in self._tapped]
        self._capture.open = True
        try:
            prediction = self._predict(self._call.keywords(self._enter(tensors)))
            feature = self._capture.take()
        finally:
            for handle in handles:
                handle.remove()
        assert feature is not None
        return self._leave(prediction), self._leave(feature)


class ShallowGraph(StepGraph):
    """A shallow step: takes the deep feature as its last input and returns the prediction.

    `used` names the inputs that its layers read; by default, all of the call.
    """

    outputs = (PREDICTION,)

    def __init__(
        self,
        unet: nn.Module,
        branch: SkipBranch,
        call: Call,
        feature: torch.Tensor,
        outside: torch.dtype | None = None,
        used: frozenset[str] | None = None,
    ) -> None:
        layout, cached = layout_of(unet), CachedFeature()

        def narrow(keywords: dict[str, Any]) -> dict[str, Any]:
            return layout.narrow_call(branch, (), keywords)[1]

        wanted = (
            {path for value in narrow(call.arguments).values() for path in paths_in(value)} if used is None else used
        )
        overlays = {(overlay.owner, overlay.name): overlay.value for overlay in layout.overlays(branch, cached)}
        narrowed = _narrowed(unet, overlays, {})
        super().__init__(
            narrowed, call._replace(tensors={n: t for n, t in call.tensors.items() if n in wanted}), outside
        )
        # The values of inputs that no layer reads do not matter.
        self._unread = {name: tensor for name, tensor in call.tensors.items() if name not in wanted}
        self._cached, self._narrow = [cached], narrow
        self._dtypes[DEEP_IN] = feature.dtype
        self.inputs[DEEP_IN] = self._leave(feature)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = self._enter(tensors)
        self._cached[0].hold(named.pop(DEEP_IN))
        try:
            keywords = self._narrow(self._call.keywords(named | self._unread))
            return (self._leave(self._predict(keywords)),)
        finally:
            self._cached[0].hold(None)


def _narrowed(
    module: nn.Module, overlays: dict[tuple[nn.Module, str], nn.Module | None], done: dict[nn.Module, nn.Module]
) -> nn.Module:
    """A copy of the module with only the layers of a shallow step. It shares unchanged children and all parameters."""
    if module not in done:
        names = {name for owner, name in overlays if owner is module}
        children = {name: overlays.get((module, name), child) for name, child in module._modules.items()}
        # A mid block of None is an attribute.
        children |= {name: overlays[module, name] for name in names}
        shown = {name: None if child is None else _narrowed(child, overlays, done) for name, child in children.items()}
        if not names and all(shown[name] is child for name, child in module._modules.items()):
            done[module] = module
        else:
            done[module] = copy.copy(module)
            done[module].__dict__ = {name: value for name, value in vars(module).items() if name not in names}
            done[module]._modules = shown
    return done[module]
