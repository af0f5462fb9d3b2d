"""What must hold between calls: nothing is left on a U-Net, and what is kept is bounded."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["kept_tensors", "leftovers", "patched"]

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


def leftovers(module: nn.Module, clean: nn.Module) -> str:
    """What DeepCache has left on a U-Net that it is no longer on, or an empty string.

    Args:
        module: the U-Net.
        clean: one of the same structure that it was never on.
    """
    found = patched(module, clean)
    if found:
        return found
    for name, each in module.named_modules():
        hooks = [kind for kind in _HOOKS if len(getattr(each, kind, ()) or ())]
        if hooks:
            return f"{name or 'the U-Net'} still has {', '.join(hooks)}"
    more = set(vars(module)) ^ set(vars(clean))
    return f"the U-Net differs in its attributes {sorted(more)}" if more else ""


def patched(module: nn.Module, clean: nn.Module) -> str:
    """What a call has left of its patch on a U-Net, or an empty string; attributes and hooks of its own on the U-Net
    are fine."""
    ours, theirs = list(module.modules()), list(clean.modules())
    if len(ours) != len(theirs):
        return f"{len(ours)} modules instead of {len(theirs)}"
    for each, other in zip(ours, theirs, strict=True):
        if type(each) is not type(other):
            return f"{type(other).__name__} is of another class than before: {type(each).__mro__[:2]}"
        if each._modules.keys() != other._modules.keys():
            return f"{type(each).__name__} has other children than before: {list(each._modules)}"
        more, missing = vars(each).keys() - vars(other).keys(), vars(other).keys() - vars(each).keys()
        # What is on the U-Net itself may be DeepCache's own, as long as it hides none of its blocks.
        hiding = more & other._modules.keys() if each is module else more
        if hiding or missing:
            return f"{type(each).__name__} has other attributes than before: {sorted(hiding or missing)}"
    return ""


def kept_tensors(roots: Iterable[Any], beside: Iterable[Any]) -> list[Tensor]:
    """The tensors that can be reached from an engine.

    Args:
        roots: the engine, and what else may lead to what it keeps.
        beside: what belongs to the program: the modules of its U-Nets, its pipelines.
    """
    seen = {id(each) for each in beside}
    found, waiting = [], list(roots)
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, (str, bytes, int, float, bool, type(None), type, types.ModuleType)):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, torch.UntypedStorage):
            continue
        else:
            waiting.extend(_inside(item))
    return found


def _inside(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    if isinstance(item, (list, tuple, set, frozenset, deque)):
        return list(item)
    if isinstance(item, types.MethodType):
        return [item.__self__]
    if isinstance(item, partial):
        return [item.func, item.args, item.keywords]
    if isinstance(item, types.FunctionType):
        cells = [cell.cell_contents for cell in item.__closure__ or () if _filled(cell)]
        return [*cells, *(item.__defaults__ or ())]
    slots = [getattr(item, name, None) for kind in type(item).__mro__ for name in getattr(kind, "__slots__", ())]
    return [*getattr(item, "__dict__", {}).values(), *slots]


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
