"""Detects that the value of a tensor is read on the host, which on a device is a transfer that waits."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoTransfers(TorchDispatchMode):
    """Raises if a tensor's value is read on the host."""

    def __init__(self, monkeypatch):
        super().__init__()

        def refuse(*_, **__):
            raise AssertionError("a value was read from a tensor")

        # These read memory without an operator that a dispatch mode would see.
        for name in ("tolist", "numpy", "cpu", "__array__"):
            monkeypatch.setattr(torch.Tensor, name, refuse)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket not in (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.is_nonzero,
            torch.ops.aten.equal,
        ), f"{function} reads a value from a tensor"
        return function(*args, **(kwargs or {}))
