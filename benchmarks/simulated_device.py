"""A simulated device that shows where the host would wait for a real one.

Its tensors have their true values on the host, so that all code runs to its end, but report another device. Operations
that need such a value on the host, or copy between the two, are recorded with their line of code.

    with simulated_device(folders) as watch:
        torch.ones(3, device=DEVICE).sum().item()
    watch.waits
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

# The only device type that every build of PyTorch knows and that needs no driver.
DEVICE = torch.device("lazy")
INDEXING = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)
READ, TO_DEVICE, TO_HOST = "read", "copy to the device", "copy to the host"


@dataclass(frozen=True)
class Wait:
    """A line of code at which the host waits for the device.

    Args:
        step: index of the step; None before the first.
        what: the reason: a read or a copy.
        place: the file and the line.
    """

    step: int | None
    what: str
    place: str


class DeviceTensor(Tensor):
    """A tensor on the host that reports the simulated device. Operations on it must run under a `Watch`."""

    value: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, value: Tensor) -> DeviceTensor:
        tensor = Tensor._make_subclass(cls, value, dispatch_device=True)
        tensor.value = value
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not torch.ops.prim.device.default:
            raise RuntimeError(f"{function} on the simulated device must run under a Watch")
        return DEVICE

    def tolist(self) -> Any:
        return self.cpu().tolist()


class DeviceGenerator(torch.Generator):
    """A generator that reports the requested device, including the simulated one."""

    def __new__(cls, device: Any = "cpu") -> DeviceGenerator:
        generator = super().__new__(cls)
        generator.place = torch.device(device)
        return generator

    @property
    def device(self) -> torch.device:
        return self.place


class Watch(TorchDispatchMode):
    """Computes on the host and records where a real device would make the host wait.

    Args:
        folders: the code that waits are attributed to.

    Attributes:
        step: index of the current step, set by the caller.
        waits: all waits so far.
        operations: the number of operations on the device by step, without views.
    """

    def __init__(self, folders: tuple[Path, ...]) -> None:
        super().__init__()
        self.step: int | None = None
        self.waits: list[Wait] = []
        self.operations: Counter[int | None] = Counter()
        self._folders = tuple(map(str, folders))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.prim.device.default:
            return DEVICE
        before = any(isinstance(each, DeviceTensor) for each in tree_iter((args, kwargs)))
        after = before
        if kwargs.get("device") is not None:
            after = torch.device(kwargs["device"]).type == DEVICE.type
            kwargs = kwargs | {"device": torch.device("cpu")}
        what = _wait(function, args, kwargs, before, after)
        if what:
            self.waits.append(Wait(self.step, what, self._place()))
        self.operations[self.step] += (before or after) and not _is_view(function)
        result = function(*tree_map(_on_host, args), **tree_map(_on_host, kwargs))
        return tree_map(on_device, result) if after else result

    def each_step(self) -> list[int]:
        """The number of waits of each step."""
        numbers = Counter(wait.step for wait in self.waits)
        return [numbers[step] for step in range(1 + (self.step or 0))]

    def places(self) -> list[dict[str, Any]]:
        """Where the steps wait, for what, and how often in a run."""
        found = Counter((wait.place, wait.what) for wait in self.waits if wait.step is not None)
        return [{"place": place, "what": what, "times": times} for (place, what), times in sorted(found.items())]

    def _place(self) -> str:
        """The innermost line of the watched code."""
        frame: Any = sys._getframe(2)
        while not frame.f_code.co_filename.startswith(self._folders):
            frame = frame.f_back
        return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


@contextmanager
def simulated_device(folders: tuple[Path, ...]) -> Iterator[Watch]:
    """The simulated device, `DEVICE`, for the length of a block; yields its `Watch`."""
    lifted = torch._C._only_lift_cpu_tensors()
    # Otherwise `torch.tensor(…, device=…)` copies where no dispatch mode sees it.
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with patch.object(torch, "Generator", DeviceGenerator), Watch(folders) as watch, torch.no_grad():
            yield watch
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)


def on_device(value: Any) -> Any:
    """A tensor on the simulated device with the same memory; other values unchanged."""
    return DeviceTensor(value.detach()) if isinstance(value, Tensor) else value


def _on_host(value: Any) -> Any:
    return value.value if isinstance(value, DeviceTensor) else value


def _wait(function: Any, args: Any, kwargs: Any, before: bool, after: bool) -> str:
    """The reason why an operator makes the host wait; an empty string if it does not.

    Raises:
        RuntimeError: it mixes tensors of the host and the device, which a real device does not support.
    """
    if function is torch.ops.aten._to_copy.default and before != after:
        return "" if kwargs.get("non_blocking") else TO_DEVICE if after else TO_HOST
    if function is torch.ops.aten.copy_.default and len({isinstance(each, DeviceTensor) for each in args[:2]}) == 2:
        return "" if True in args[2:] else TO_DEVICE if isinstance(args[0], DeviceTensor) else TO_HOST
    if not before:
        return ""
    # A scalar on the host is passed with the operation.
    if any(isinstance(each, Tensor) and not isinstance(each, DeviceTensor) and each.ndim for each in tree_iter(args)):
        if function.overloadpacket in INDEXING and isinstance(args[0], DeviceTensor):
            return TO_DEVICE
        raise RuntimeError(f"{function} has tensors of the host and of the device")
    return READ if _reads(function, args) else ""


def _reads(function: Any, args: Any) -> bool:
    """Whether an operator, or the size of its result, needs a value on the host."""
    if function is torch.ops.aten._linalg_check_errors.default:
        return True
    if function.overloadpacket in INDEXING:
        # The elements of a mask are counted first; indices are not.
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags))


def _is_view(function: Any) -> bool:
    return any(each.alias_info is not None and not each.alias_info.is_write for each in function._schema.returns)
