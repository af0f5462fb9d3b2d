"""Multiply-accumulates of full and shallow steps, counted on meta tensors: no weights, no arithmetic."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from DeepCache.engine.attention import copy_processor
from DeepCache.engine.cost_key import attributes_of, call_key, structure_key
from DeepCache.engine.first_call import first_call
from DeepCache.engine.guidance import output_tensor
from DeepCache.engine.layouts import Layout, SkipBranch, layout_of
from DeepCache.engine.layouts.layout import Args, Kwargs
from DeepCache.engine.patch import ShallowPatch

__all__ = ["Costs", "capture_unet_call", "copy_on_meta", "count_costs", "on_meta"]

# Torch records for all threads together whether a dispatch mode is on. Two threads that count at once may leave it
# recorded for good (seen with torch 2.6), and then nothing is compiled any more.
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


@dataclass
class _Counted:
    """The counts of one structure and one call: shape and dtype of every deep feature, and the multiply-accumulates of
    the shallow steps that have been requested, by the number of the skip branch."""

    full: int
    features: dict[int, tuple[torch.Size, torch.dtype]]
    shallow: dict[int, int] = field(default_factory=dict)


# The most recently used one is the last.
_COUNTED: OrderedDict[tuple[str, str], _Counted] = OrderedDict()
_MOST_COUNTED = 64


def count_costs(
    unet: nn.Module, args: Args, kwargs: Kwargs, branches: Iterable[SkipBranch | int] | None = None
) -> Costs:
    """Counts the cost of a U-Net call as a full step and as a shallow one, once per structure and shapes of arguments.

    Args:
        unet: the U-Net, or graphs of it; neither its weights nor its hooks are touched.
        args: positional arguments of the call; of tensors only shape and dtype matter.
        kwargs: keyword arguments of the call.
        branches: the skip branches to count, or their numbers; all by default.

    Example:
        >>> import torch
        >>> from diffusers import UNet2DModel
        >>> unet = UNet2DModel(sample_size=32, block_out_channels=(32, 32), norm_num_groups=8,
        ...     down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"))
        >>> costs = count_costs(unet, (torch.zeros(1, 3, 32, 32), 0), {})
        >>> costs.shallow[0] < costs.full
        True
    """
    unet = getattr(unet, "deepcache_architecture", unet)
    args, kwargs = on_meta(args), on_meta(kwargs)
    wanted = None
    if branches is not None:
        wanted = [branch.number if isinstance(branch, SkipBranch) else branch for branch in branches]
    key = structure_key(unet), call_key(args, kwargs)
    # A second request for the same count waits for the first.
    with _ONE_AT_A_TIME:
        counted = _COUNTED.get(key)
        if counted is None or not counted.shallow.keys() >= set(counted.features if wanted is None else wanted):
            counted = _COUNTED[key] = _count_missing(unet, args, kwargs, counted, wanted)
        _COUNTED.move_to_end(key)
        while len(_COUNTED) > _MOST_COUNTED:
            _COUNTED.popitem(last=False)
        numbers = list(counted.features) if wanted is None else wanted
        return Costs(
            counted.full,
            {number: counted.shallow[number] for number in numbers},
            {number: counted.features[number][0][1] for number in numbers},
        )


def _count_missing(
    unet: nn.Module,
    args: Args,
    kwargs: Kwargs,
    counted: _Counted | None,
    wanted: list[int] | None,
) -> _Counted:
    """Counts what is not yet known of these branches, or of all."""
    clone = copy_on_meta(unet)
    layout = layout_of(clone)
    if counted is None:
        counted = _count_full(clone, layout, args, kwargs)
    for branch in layout.branches:
        number = branch.number
        if number not in counted.shallow and (wanted is None or number in wanted):
            shape, dtype = counted.features[number]
            patch = ShallowPatch(layout, branch)
            patch.apply(torch.empty(shape, dtype=dtype, device="meta"))
            counted.shallow[number] = _count(clone, *patch.narrow(args, kwargs))
            patch.remove()
    return counted


def _count_full(clone: nn.Module, layout: Layout, args: Args, kwargs: Kwargs) -> _Counted:
    """Counts a full step and records shape and dtype of the deep features."""
    found: dict[int, torch.Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _, __, output, number=branch.number: found.update({number: output}))
        for branch in layout.branches
        for module in layout.tapped(branch)
    ]
    full = _count(clone, args, kwargs)
    for handle in handles:
        handle.remove()
    features = {branch.number: output_tensor(found[branch.number]) for branch in layout.branches}
    return _Counted(full, {number: (tensor.shape, tensor.dtype) for number, tensor in features.items()})


def capture_unet_call(pipe: Any, unet: nn.Module, **call: Any) -> tuple[Args, Kwargs]:
    """The arguments of the first call of a U-Net in a pipeline call, on meta tensors. The pipeline stops there.

    Args:
        pipe: a pipeline.
        unet: the U-Net of the pipeline.
        call: the arguments of the pipeline call.
    """
    args, kwargs = first_call(unet, lambda: pipe(**call))
    return on_meta(args), on_meta(kwargs)


def on_meta(value: Any) -> Any:
    """The same value with every tensor in it replaced by an empty one on the meta device. Floating-point tensors become
    float32: a stored dtype need not be the one of the computation (layerwise casting, quantisation)."""
    if isinstance(value, torch.Tensor):
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        return torch.empty(value.shape, dtype=dtype, device="meta")
    if isinstance(value, dict):
        return {key: on_meta(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = (on_meta(item) for item in value)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _count(unet: nn.Module, args: Args, kwargs: Kwargs) -> int:
    try:
        from torch.utils.flop_counter import FlopCounterMode
    except ModuleNotFoundError:
        raise NotImplementedError(f"counting operations requires torch 2.1, got {torch.__version__}") from None
    with torch.no_grad(), FlopCounterMode(display=False) as counter, _PlainNorms():  # type: ignore[no-untyped-call]
        unet(*args, **kwargs)
    return int(counter.get_total_flops()) // 2


class _PlainNorms(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Replaces normalisations, which have no multiply-accumulates to count, by empty tensors: on the meta device torch
    runs them in Python, operation by operation, which takes a third of the time of a count."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.native_group_norm.default or func is torch.ops.aten.native_layer_norm.default:
            # The mean and the deviation are for the backward pass only.
            return tuple(torch.empty_like(args[0]) for _ in range(3))
        return func(*args, **kwargs or {})


def copy_on_meta(module: nn.Module) -> nn.Module:
    """A copy of a module tree with meta parameters, without hooks (offloading also replaces `forward` on the instance),
    and with attention processors that do not write into a pipeline's store."""
    return _copy_on_meta(module, {}, {})


def _copy_on_meta(module: nn.Module, done: dict[nn.Module, nn.Module], processors: dict[int, Any]) -> nn.Module:
    if module in done:
        return done[module]
    clone = module.__new__(type(module))
    done[module] = clone
    clone.__dict__ = {
        name: on_meta(value) if isinstance(value, torch.Tensor) else value
        for name, value in attributes_of(module).items()
        if name != "forward"
    }
    if "processor" in module.__dict__:
        clone.__dict__["processor"] = copy_processor(module.__dict__["processor"], processors)
    for name, value in list(module.__dict__.items()):
        if name.endswith("_hooks") or "_hooks_" in name:
            clone.__dict__[name] = type(value)()
    clone._parameters = {
        name: None if value is None else nn.Parameter(on_meta(value), requires_grad=False)
        for name, value in module._parameters.items()
    }
    clone._buffers = {name: on_meta(value) for name, value in module._buffers.items()}
    clone._modules = {
        name: None if child is None else _copy_on_meta(child, done, processors)
        for name, child in module._modules.items()
    }
    clone._compiled_call_impl = None
    return clone
