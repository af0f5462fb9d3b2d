"""Attention that a pipeline reads, in layers that a shallow step does not run.

Some pipelines read attention maps of the U-Net at every step: self-attention guidance, Pix2Pix-Zero, LEDITS++. Their
attention processors store what they see. A shallow step runs no deep layer, so the pipeline would read the maps of
another call or none. Therefore the inputs of those layers at a full step are kept with its deep feature, and on a
shallow step the layers are called with them again. Their output is discarded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from DeepCache.engine.layouts.layout import Args, Kwargs
from DeepCache.engine.torch_versions import bytes_of

_PLAIN = (bool, int, float, str)
# From a processor through its store and the store's dictionary of lists to the maps.
_LEVELS = 4


class AttentionCalls:
    """Calls of attention layers to repeat: layers with the arguments they were called with, in order."""

    def __init__(self, calls: list[tuple[nn.Module, Args, Kwargs]]) -> None:
        self._calls = calls

    @property
    def bytes(self) -> int:
        """Size of the tensors that are kept for it."""
        values = [value for _, args, kwargs in self._calls for value in (*args, *kwargs.values())]
        return sum({id(value): bytes_of(value) for value in values if isinstance(value, torch.Tensor)}.values())

    def repeat(self, layers: list[nn.Module], attention_kwargs: Kwargs) -> None:
        """Repeats the calls of these layers, with the `cross_attention_kwargs` of the current U-Net call."""
        for layer, args, kwargs in self._calls:
            if layer in layers:
                layer(*args, **kwargs | {name: value for name, value in attention_kwargs.items() if name in kwargs})

    def __bool__(self) -> bool:
        return bool(self._calls)


class Listener:
    """Records, for one U-Net call, the calls of attention layers whose processors `may_write`."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self._calls: list[tuple[nn.Module, Args, Kwargs]] = []
        self._before = {layer: _contents(layer.processor) for layer in layers}
        self._handles = [layer.register_forward_pre_hook(self._note, with_kwargs=True) for layer in self._before]

    def stop(self) -> AttentionCalls:
        """The calls of those layers whose processors did write."""
        for handle in self._handles:
            handle.remove()
        wrote = {layer for layer, before in self._before.items() if _differ(before, _contents(layer.processor))}
        copies: dict[int, Any] = {}

        def copied(value: Any) -> Any:
            if isinstance(value, torch.Tensor) and id(value) not in copies:
                # A CUDA graph overwrites it at the next step.
                copies[id(value)] = value.clone()
            return copies.get(id(value), value)

        return AttentionCalls(
            [
                (layer, tuple(map(copied, args)), {name: copied(value) for name, value in kwargs.items()})
                for layer, args, kwargs in self._calls
                if layer in wrote
            ]
        )

    def _note(self, layer: nn.Module, args: Args, kwargs: Kwargs) -> None:
        kept = {name: _without_history(value) for name, value in kwargs.items()}
        self._calls.append((layer, tuple(map(_without_history, args)), kept))


def copy_processor(processor: Any, copies: dict[int, Any]) -> Any:
    """A copy of an attention processor for the meta device, with a separate store. `copies` holds what has been
    copied for other processors of the same U-Net, which may share a store."""
    for item in _contents(processor):
        if isinstance(item, nn.Module):
            copies[id(item)] = item
        elif isinstance(item, torch.Tensor):
            copies[id(item)] = torch.empty_like(item, device="meta")
    return copy.deepcopy(processor, copies)


def may_write(layer: nn.Module) -> bool:
    """Whether the processor of an attention layer holds anything but settings. Processors of adapters are modules and
    hold weights."""
    processor: Any = layer.processor
    return not isinstance(processor, nn.Module) and any(
        not isinstance(value, _PLAIN) for value in getattr(processor, "__dict__", {}).values()
    )


def counting_editor(modules: Iterable[nn.Module]) -> str:
    """The class of an editor that has replaced the `forward` of attention layers and counts their calls to identify the
    layer (Prompt-to-Prompt, MasaCtrl); an empty string if there is none."""
    for module in modules:
        for cell in getattr(vars(module).get("forward"), "__closure__", None) or ():
            try:
                held = cell.cell_contents
            except ValueError:
                # An unbound name.
                continue
            if hasattr(held, "num_att_layers"):
                return type(held).__name__
    return ""


def _without_history(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


def _contents(processor: Any) -> list[Any]:
    return list(_walk(processor, _LEVELS))


def _walk(item: Any, levels: int) -> Iterator[Any]:
    yield item
    if levels == 0 or isinstance(item, (torch.Tensor, type)):
        return
    inner = item.values() if isinstance(item, dict) else item
    if not isinstance(item, (dict, list, tuple)):
        inner = getattr(item, "__dict__", {}).values()
    for each in inner:
        yield from _walk(each, levels - 1)


def _differ(before: list[Any], after: list[Any]) -> bool:
    return len(before) != len(after) or any(old is not new for old, new in zip(before, after, strict=True))
