"""Keys of everything that the multiply-accumulates of a call depend on: the structure of the denoiser, the arguments.

Two denoisers of one structure have the same key, regardless of their weights, dtype and device. A key holds no
reference to a module or a tensor.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections import deque
from collections.abc import Iterator
from enum import Enum
from threading import Lock
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from DeepCache.engine import layouts
from DeepCache.engine.layouts import CachedFeature
from DeepCache.engine.layouts.layout import Args, Kwargs

# Attributes that do not change what a call computes: those of every module (hooks, caches of torch) except the training
# flag, hooks of accelerate and diffusers, DeepCache itself, `forward` on an instance (offloading), compiled code.
_IGNORED = frozenset(nn.Module().__dict__) - {"training"}
_IGNORED |= {"forward", "_old_forward", "_hf_hook", "_diffusers_hook", "_compiled_call_impl"}
_IGNORED |= {"_deepcache_engine", "_reset_stateful_cache"}

_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, range, slice, torch.dtype, torch.device})
# From a processor through its contents to the settings in there.
_LEVELS = 5


_numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_next = itertools.count()
_lock = Lock()


def _number(item: Any) -> int:
    """A number for each class and function, never used for another one. Names are not unique: a class may be defined
    again in a notebook."""
    with _lock:
        number = _numbers.get(item)
        if number is None:
            number = _numbers[item] = next(_next)
        return number


def structure_key(denoiser: nn.Module) -> str:
    """The key of a denoiser: the class of every module in it and the code that it runs, its settings, the shapes of its
    tensors, its attention processors."""
    description: list[Any] = [_number(layout) for layout in layouts._LAYOUTS]
    _add_modules(denoiser, description, {}, {})
    return _digest(description)


def call_key(args: Args, kwargs: Kwargs) -> str:
    """The key of the arguments of a call: the shapes of all tensors, and everything that is not a tensor."""
    return _digest(_describe((args, dict(sorted(kwargs.items()))), _LEVELS))


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module as they are outside of a shallow step, whose patch hides children."""
    # A copy: a call in another thread may add and remove attributes meanwhile.
    attributes = module.__dict__.copy()
    for name in attributes.keys() & module._modules.keys():
        del attributes[name]
    for name, value in attributes.items():
        if isinstance(value, CachedFeature):
            attributes[name] = None
    return attributes


def _add_modules(
    module: nn.Module, description: list[Any], places: dict[nn.Module, int], kinds: dict[type, tuple[int, int]]
) -> None:
    """Adds a description of each module of a tree; for one that is in it several times, later its place."""
    places[module] = len(places)
    kind = type(module)
    if kind not in kinds:
        kinds[kind] = _number(kind), _number(kind.forward)
    description.append(kinds[kind])
    attributes = module.__dict__.copy()
    for name in sorted(attributes.keys() - _IGNORED - module._modules.keys()):
        description += (name, _describe(attributes[name], _LEVELS))
    for tensors in (module._parameters, module._buffers):
        for name, tensor in tensors.items():
            description += (name, None if tensor is None else _shape(tensor))
    for name, child in list(module._modules.items()):
        description += (name, None if child is None else places.get(child))
        if child is not None and child not in places:
            _add_modules(child, description, places, kinds)
    # The end of the children.
    description.append(None)


def _shape(tensor: torch.Tensor) -> Any:
    return tuple(tensor.shape), "float" if tensor.is_floating_point() else str(tensor.dtype)


def _describe(value: Any, levels: int) -> Any:
    """A value as nested tuples of plain values, a limited number of levels deep."""
    kind = type(value)
    if kind in _PLAIN or (kind is tuple and _PLAIN.issuperset(map(type, value))):
        return value
    if isinstance(value, torch.Tensor):
        return "tensor", _shape(value)
    if isinstance(value, CachedFeature):
        return None
    if isinstance(value, Enum):
        return _number(kind), value.name
    if isinstance(value, (type, FunctionType, MethodType, BuiltinFunctionType)):
        return _code(value)
    if levels == 0 or isinstance(value, nn.Module):
        return (_number(kind),)
    return _number(kind), *_inside(value, levels - 1)


def _inside(value: Any, levels: int) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from ((_describe(key, levels), _describe(item, levels)) for key, item in list(value.items()))
    elif isinstance(value, (list, tuple, deque)):
        yield from (_describe(item, levels) for item in list(value))
    elif isinstance(value, (set, frozenset)):
        yield from sorted(repr(_describe(item, levels)) for item in list(value))
    elif isinstance(value, functools.partial):
        yield from (_describe(each, levels) for each in (value.func, value.args, value.keywords))
    elif hasattr(value, "shape") and hasattr(value, "dtype"):
        # A NumPy value.
        yield repr((value.shape, value.dtype)) if value.shape else repr(value)
    elif isinstance(value, (str, int, float)):
        # A value of a subclass.
        yield repr(value)
    else:
        attributes = dict(getattr(value, "__dict__", {}))
        slots = (getattr(kind, "__slots__", ()) for kind in type(value).__mro__)
        names = itertools.chain.from_iterable((each,) if isinstance(each, str) else each for each in slots)
        attributes |= {name: getattr(value, name) for name in names if hasattr(value, name)}
        yield from ((name, _describe(item, levels)) for name, item in attributes.items())


def _code(value: Any) -> Any:
    """A class, a function, or a method with the class of what it is bound to."""
    function = getattr(value, "__func__", None)
    if function is not None:
        return "method", _code(function), _number(type(value.__self__))
    try:
        return "code", _number(value)
    except TypeError:
        # Written in C: names are unique.
        return "code", getattr(value, "__module__", None), getattr(value, "__qualname__", repr(value))


def _digest(description: Any) -> str:
    return hashlib.sha256(repr(description).encode(errors="surrogatepass")).hexdigest()
