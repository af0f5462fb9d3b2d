"""What full and shallow steps cost, in multiply-accumulates counted on meta tensors: no weights, no arithmetic."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from DeepCache.engine.attention import copy_processor
from DeepCache.engine.capture import FeatureCapture
from DeepCache.engine.layouts import SkipBranch, layout_of
from DeepCache.engine.patch import ShallowPatch

__all__ = ["Costs", "capture_unet_call", "count_costs", "on_meta"]

# Torch notes for all threads together whether a dispatch mode is on. Two that count side by side may leave it noted for
# good (seen with torch 2.6), and then nothing is compiled any more.
_ONE_AT_A_TIME = Lock()


@dataclass(frozen=True)
class Costs:
    """Multiply-accumulates of one U-Net call, attention included.

    Args:
        full: those of a full step.
        shallow: those of a shallow step, by the number of the skip branch.
        channels: channels of the deep feature, by the number of the skip branch.
    """

    full: int
    shallow: dict[int, int]
    channels: dict[int, int]

    def share(self, branch: int) -> float:
        """Cost of a shallow step at a branch as a share of a full step's."""
        return self.shallow[branch] / self.full


def count_costs(
    unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], branches: Iterable[SkipBranch] | None = None
) -> Costs:
    """Counts what a U-Net call costs as a full step and as a shallow one.

    Args:
        unet: the U-Net; neither its weights nor its hooks are touched.
        args: positional arguments of the call; of tensors only shape and dtype matter.
        kwargs: keyword arguments of the call.
        branches: the skip branches to count, all by default.

    Example:
        >>> import torch
        >>> from diffusers import UNet2DModel
        >>> unet = UNet2DModel(sample_size=32, block_out_channels=(32, 32), norm_num_groups=8,
        ...     down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"))
        >>> costs = count_costs(unet, (torch.zeros(1, 3, 32, 32), 0), {})
        >>> costs.shallow[0] < costs.full
        True
    """
    clone = _on_meta_without_hooks(unet, {}, {})
    args, kwargs = on_meta(args), on_meta(kwargs)
    layout = layout_of(clone)
    captures = {branch: FeatureCapture() for branch in (layout.branches if branches is None else branches)}
    for branch, capture in captures.items():
        capture.open = True
        for module in layout.tapped(branch):
            module.register_forward_hook(capture)
    full = _count(clone, args, kwargs)
    shallow, channels = {}, {}
    for branch, capture in captures.items():
        feature = capture.take()
        assert feature is not None
        patch = ShallowPatch(layout, branch)
        patch.apply(feature)
        narrow_args, narrow_kwargs = layout.narrow_call(branch, args, kwargs)
        shallow[branch.number] = _count(clone, narrow_args, narrow_kwargs)
        patch.remove()
        channels[branch.number] = feature.shape[1]
    return Costs(full, shallow, channels)


def capture_unet_call(pipe: Any, unet: nn.Module, **call: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the first call of a U-Net that a pipeline call makes, on meta tensors.

    The pipeline runs up to that call and no further.

    Args:
        pipe: a pipeline.
        unet: the U-Net of the pipeline.
        call: what the pipeline is called with.
    """

    class Reached(Exception):
        pass

    captured: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured.append((on_meta(args), on_meta(kwargs)))
        raise Reached

    handle = unet.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        pipe(**call)
    except Reached:
        pass
    finally:
        handle.remove()
    return captured[0]


def on_meta(value: Any) -> Any:
    """The same value with every tensor in it replaced by an empty one on the meta device, of float32 where it is one of
    floating-point numbers: what is stored in one type may be computed in another (layerwise casting, quantisation)."""
    if isinstance(value, torch.Tensor):
        return torch.empty(
            value.shape, dtype=torch.float32 if value.is_floating_point() else value.dtype, device="meta"
        )
    if isinstance(value, dict):
        return {key: on_meta(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(on_meta(item) for item in value)
    return value


def _count(unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    with _ONE_AT_A_TIME, torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(*args, **kwargs)
    return int(counter.get_total_flops()) // 2


def _on_meta_without_hooks(
    module: nn.Module, done: dict[nn.Module, nn.Module], processors: dict[int, Any]
) -> nn.Module:
    """A copy of a module tree with meta parameters and no hooks, whoever put them there (offloading replaces `forward`
    on the instance), and with attention processors that write nothing into a pipeline's store."""
    if module in done:
        return done[module]
    clone = module.__new__(type(module))
    done[module] = clone
    clone.__dict__ = {
        name: on_meta(value) if isinstance(value, torch.Tensor) else value
        for name, value in module.__dict__.items()
        if name != "forward"
    }
    if "processor" in module.__dict__:
        clone.__dict__["processor"] = copy_processor(module.__dict__["processor"], processors)
    for name, value in module.__dict__.items():
        if name.endswith("_hooks") or "_hooks_" in name:
            clone.__dict__[name] = type(value)()
    clone._parameters = {
        name: None if value is None else nn.Parameter(on_meta(value), requires_grad=False)
        for name, value in module._parameters.items()
    }
    clone._buffers = {name: on_meta(value) for name, value in module._buffers.items()}
    clone._modules = {
        name: None if child is None else _on_meta_without_hooks(child, done, processors)
        for name, child in module._modules.items()
    }
    clone._compiled_call_impl = None
    return clone
