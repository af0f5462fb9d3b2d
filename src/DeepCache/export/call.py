"""Flattens a call of a denoiser to named tensors, the inputs of a graph."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

__all__ = ["Call", "CallReader", "Constant"]

Constant = bool | int | float | str


class Call(NamedTuple):
    """The arguments of a call.

    Args:
        tensors: the tensors by path, such as `added_cond_kwargs.text_embeds`.
        constants: the numbers, booleans and strings by path, which become part of a graph.
        arguments: the nested keyword arguments, with paths instead of tensors.
    """

    tensors: dict[str, torch.Tensor]
    constants: dict[str, Constant]
    arguments: dict[str, Any]

    def keywords(self, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        """The keyword arguments with these tensors."""
        return {name: _filled(value, tensors) for name, value in self.arguments.items()}


class _Path(str):
    """Stands for a tensor."""

    __slots__ = ()


class CallReader:
    """Reads the calls of one class of denoisers.

    The timestep becomes a float32 tensor with one value per sample, since graphs have fixed types.

    Args:
        forward: `type(denoiser).forward`.

    Example:
        >>> def forward(self, sample, timestep, text=None, added=None): ...
        >>> call = CallReader(forward)((torch.zeros(2, 4), 7), {"added": {"size": torch.ones(2)}, "text": None})
        >>> list(call.tensors), call.tensors["timestep"]
        (['sample', 'timestep', 'added.size'], tensor([7., 7.]))
    """

    def __init__(self, forward: Any) -> None:
        parameters = list(inspect.signature(forward).parameters.values())[1:]
        self._names = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
        self._defaults = {each.name: each.default for each in parameters}

    @classmethod
    def of(cls, denoiser: nn.Module) -> CallReader:
        # Offloading replaces `forward` on instances.
        return cls(type(denoiser).forward)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Reads a call.

        Raises:
            TypeError: an argument contains anything but tensors, numbers, booleans and strings.
            ValueError: the number of timesteps is not that of the samples.
        """
        arguments = dict(zip(self._names, args, strict=False)) | kwargs
        arguments.pop("return_dict", None)
        sample = arguments[self._names[0]]
        if "timestep" in arguments:
            arguments["timestep"] = _timesteps(arguments["timestep"], sample)
        tensors: dict[str, torch.Tensor] = {}
        constants: dict[str, Constant] = {}
        kept: dict[str, Any] = {}
        # In the order of the signature, so that positional and keyword arguments give the same inputs.
        ordered = [name for name in self._names if name in arguments]
        for name in [*ordered, *sorted(arguments.keys() - {*ordered})]:
            value = arguments[name]
            default = self._defaults.get(name)
            if (value is None and default is None) or _is_default(value, default):
                continue
            kept[name] = _read(name, value, tensors, constants)
        return Call(tensors, constants, kept)


def _is_default(value: Any, default: Any) -> bool:
    return isinstance(value, (bool, int, float, str)) and type(value) is type(default) and value == default


def _timesteps(timestep: Any, sample: torch.Tensor) -> torch.Tensor:
    steps = torch.as_tensor(timestep, device=sample.device).to(torch.float32)
    if steps.ndim > 1 or (steps.ndim == 1 and len(steps) not in (1, len(sample))):
        raise ValueError(
            f"timestep must be one value or one for each of the {len(sample)} samples, got a tensor of shape "
            f"{tuple(steps.shape)}"
        )
    # The timestep of a scheduler is a view with the strides of one value.
    return steps.expand(len(sample)).contiguous()


def _read(path: str, value: Any, tensors: dict[str, torch.Tensor], constants: dict[str, Constant]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[path] = value
        return _Path(path)
    if isinstance(value, dict):
        return {key: _read(f"{path}.{key}", item, tensors, constants) for key, item in sorted(value.items())}
    if type(value) in (list, tuple):
        return type(value)(_read(f"{path}.{index}", item, tensors, constants) for index, item in enumerate(value))
    if value is None:
        return None
    if isinstance(value, (bool, int, float, str)):
        constants[path] = value
        return value
    raise TypeError(
        f"arguments of a graph must be tensors, numbers or strings, got a {type(value).__name__} for {path!r}"
    )


def _filled(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, _Path):
        return tensors[value]
    if isinstance(value, dict):
        return {key: _filled(item, tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_filled(item, tensors) for item in value)
    return value


def paths_in(value: Any) -> Iterator[str]:
    """The paths of the tensors in a value of `Call.arguments`."""
    if isinstance(value, _Path):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from paths_in(item)
