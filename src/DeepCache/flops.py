"""`count_ops_and_params` of the reference package, which counts the same layers in the same way.

It omits the matrix products of attention and counts biases and normalizations. `DeepCacheSDHelper.stats` and
`deepcache info` count the multiply-accumulates of every product instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import nn

from DeepCache.engine.cost import copy_on_meta, on_meta

__all__ = ["count_ops_and_params"]

_CONVOLUTIONS = {
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
}
_ACTIVATIONS = {nn.ReLU, nn.PReLU, nn.ELU, nn.LeakyReLU, nn.ReLU6, nn.GELU}
_POOLINGS = {
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
}
_NORMS = {
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
}
_NAMES_OF_LINEAR = ("LoRACompatibleLinear",)
_NAMES_OF_CONVOLUTION = ("LoRACompatibleConv",)


def count_ops_and_params(model: nn.Module, example_inputs: Any, layer_wise: bool = False) -> tuple[float, int]:
    """Counts the operations of a model per sample, and its parameters.

    The layers run on the meta device, on a copy without weights.

    Args:
        model: the model. Recurrent layers and `nn.MultiheadAttention` are not counted.
        example_inputs: its arguments: a tensor, a tuple or list of tensors, or a dict of keyword arguments, of which
            the whole batch counts as one sample.
        layer_wise: whether to print one line per layer.

    Returns:
        The operations per sample (for convolutions and linear layers, multiply-accumulates and biases) and the number
        of parameters.

    Example:
        >>> import torch
        >>> count_ops_and_params(torch.nn.Linear(8, 4), torch.zeros(2, 8))
        (34.0, 36)
    """
    operations: dict[nn.Module, int] = {}

    def count(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        operations[module] = operations.get(module, 0) + _operations(module, args[0], output)

    clone = copy_on_meta(model).eval()
    for module in clone.modules():
        if _is_counted(module):
            module.register_forward_hook(count)
    args, kwargs = _arguments(on_meta(example_inputs))
    with torch.no_grad():
        clone(*args, **kwargs)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    total = _total(clone, operations)
    if layer_wise:
        _print_layers(clone, operations, total)
    return total / (len(args[0]) if args else 1), parameters


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if isinstance(inputs, dict):
        return (), inputs
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def _is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear or type(module).__name__ in _NAMES_OF_LINEAR


def _is_convolution(module: nn.Module) -> bool:
    return type(module) in _CONVOLUTIONS or type(module).__name__ in _NAMES_OF_CONVOLUTION


def _is_counted(module: nn.Module) -> bool:
    others = _ACTIVATIONS | _POOLINGS | _NORMS | {nn.Upsample}
    return _is_linear(module) or _is_convolution(module) or type(module) in others


def _operations(module: Any, sample: torch.Tensor, output: torch.Tensor) -> int:
    if _is_convolution(module):
        positions = len(sample) * prod(output.shape[2:])
        each: int = prod(module.kernel_size) * module.in_channels * (module.out_channels // module.groups)
        each += 0 if module.bias is None else module.out_channels
        return positions * each
    if _is_linear(module):
        # The reference counts a bias once per call.
        return sample.numel() * output.shape[-1] + (output.shape[-1] if module.bias is not None else 0)
    if type(module) in _NORMS:
        affine = module.elementwise_affine if isinstance(module, nn.LayerNorm) else module.affine
        return sample.numel() * (2 if affine else 1)
    if type(module) in _POOLINGS:
        return sample.numel()
    # The reference counts one sample of an upsampled batch.
    return output[0].numel() if isinstance(module, nn.Upsample) else output.numel()


def _total(module: nn.Module, operations: Mapping[nn.Module, int]) -> int:
    if _is_counted(module):
        return operations.get(module, 0)
    return sum(_total(child, operations) for child in module.children())


def _print_layers(model: nn.Module, operations: Mapping[nn.Module, int], total: int) -> None:
    for name, module in model.named_modules():
        count, parameters = _total(module, operations), sum(each.numel() for each in module.parameters())
        share = 100 * count / total if total else 0.0
        print(f"{name or type(module).__name__:40} {count / 1e9:12.4f} GMACs {parameters / 1e6:12.4f} M {share:6.2f} %")
