"""A call of a denoiser as a flat list of named tensors, which is what a graph takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

__all__ = ["Call", "CallReader", "Constant"]

Constant = bool | int | float | str

# The front that runs the graphs answers it.
_ANSWERED = "return_dict"


class Call(NamedTuple):
    """The arguments of a call.

    Args:
        tensors: every tensor by its path, such as `added_cond_kwargs.text_embeds`.
        constants: every number, flag and text by its path. A graph has them built in.
        arguments: the same as nested keyword arguments, with a path in place of each tensor.
    """

    tensors: dict[str, torch.Tensor]
    constants: dict[str, Constant]
    arguments: dict[str, Any]

    def keywords(self, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        """The keyword arguments with these tensors in them."""
        return {name: _filled(value, tensors) for name, value in self.arguments.items()}


class _Path(str):
    """Where a tensor was."""

    __slots__ = ()


class CallReader:
    """Reads the calls of one class of denoisers.

    The timestep becomes a float32 tensor of one value a sample, whatever the scheduler gave: graphs have one type.

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
        """Of the class, since offloading replaces `forward` on an instance."""
        return cls(type(denoiser).forward)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Reads a call.

        Raises:
            TypeError: an argument holds something other than tensors, numbers, flags and texts.
            ValueError: there is no timestep for each sample.
        """
        arguments = dict(zip(self._names, args, strict=False)) | kwargs
        arguments.pop(_ANSWERED, None)
        sample = arguments[self._names[0]]
        if "timestep" in arguments:
            arguments["timestep"] = _timesteps(arguments["timestep"], sample)
        tensors: dict[str, torch.Tensor] = {}
        constants: dict[str, Constant] = {}
        kept: dict[str, Any] = {}
        # In the order of the signature, so that the same call has the same inputs however it was written.
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
            f"a graph takes one timestep for each of the {len(sample)} samples, or one for all, got a tensor of shape "
            f"{tuple(steps.shape)}"
        )
    # A tensor of its own: that of the scheduler is a view whose strides are those of one value.
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
    raise TypeError(f"a graph takes tensors, numbers and text, and the argument {path!r} is a {type(value).__name__}")


def _filled(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, _Path):
        return tensors[value]
    if isinstance(value, dict):
        return {key: _filled(item, tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_filled(item, tensors) for item in value)
    return value


def paths_in(value: Any) -> Iterator[str]:
    """The paths of the tensors in a part of `Call.arguments`."""
    if isinstance(value, _Path):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from paths_in(item)
