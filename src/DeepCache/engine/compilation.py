"""`torch.compile` on a U-Net, attached and detached with DeepCache.

A compiled U-Net has one graph for full steps and one for shallow steps, distinguished by the class that the U-Net has
for the length of the call. The hooks run outside of the graphs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import nn

from DeepCache.engine.call_guard import CallGuard
from DeepCache.engine.torch_versions import CALLS_WHAT_IS_COMPILED, not_compiled

_OPTIONS = signature(torch.compile).parameters
# Compiled code belongs to a function, not to the module that it was compiled for: without this option, the
# recompilations of all U-Nets count together. Older releases of torch do not have it.
ISOLATED = {"isolate_recompiles": True} if "isolate_recompiles" in _OPTIONS else {}
# Every kind of step needs a graph, and the first other image size one more.
_LIMIT = {"recompile_limit": 64} if "recompile_limit" in _OPTIONS else {}

_WITHOUT_CUDA_GRAPHS = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}

_COMPILED = "_compiled_call_impl"

_logger = logging.getLogger(__name__)


class Compilation:
    """`DeepCacheConfig.compile` on one U-Net. Compiled code is kept while it is detached.

    Raises a `ValueError` if the mode is `regional` and the U-Net has no transformer blocks, or if torch is 2.0.
    """

    def __init__(self, unet: nn.Module, mode: str) -> None:
        self._calls: list[_CompiledCall] = []
        if mode != "none" and not CALLS_WHAT_IS_COMPILED:
            raise ValueError(
                f"compile={mode!r} requires torch 2.1 or newer, this is torch {torch.__version__}. Remove it"
            )
        if mode == "regional":
            # The blocks share their code, and so the compiled code.
            self._calls = [_CompiledCall(block, "default", {}) for block in _transformer_blocks(unet)]
        elif mode != "none":
            self._calls = [_CompiledCall(unet, mode, ISOLATED)]

    def attach(self) -> None:
        """Compiles the calls of modules that are not compiled already. Idempotent."""
        for call in self._calls:
            # The attribute that `nn.Module.compile` sets.
            vars(call.module).setdefault(_COMPILED, call)

    def detach(self) -> None:
        """Restores the U-Net. Idempotent."""
        for call in self._calls:
            if vars(call.module).get(_COMPILED) is call:
                del vars(call.module)[_COMPILED]


class _CompiledCall:
    """The call of a module, compiled at the first call, when its device is known."""

    def __init__(self, module: nn.Module, mode: str, options: dict[str, Any]) -> None:
        self.module, self._mode, self._options = module, mode, options
        self._compiled: dict[str, Callable[..., Any]] = {}
        self._warned = False

    # A program that compiles the U-Net around it calls it uncompiled.
    @not_compiled
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mode = self._mode
        if mode in _WITHOUT_CUDA_GRAPHS and (reason := _why_no_cuda_graphs(self.module)):
            mode = _WITHOUT_CUDA_GRAPHS[mode]
            if not self._warned:
                self._warned = True
                _logger.warning("compile=%r works without CUDA graphs (as %r): %s", self._mode, mode, reason)
        if mode not in self._compiled:
            options: dict[str, Any] = {**self._options, **_LIMIT}
            self._compiled[mode] = torch.compile(self.module._call_impl, mode=mode, **options)
        return self._compiled[mode](*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # Compiled code can be neither copied nor pickled.
        return self.__dict__ | {"_compiled": {}}


def is_compiled(unet: nn.Module) -> bool:
    """Whether a U-Net as the pipeline has it is compiled, whole or in part, by DeepCache or by the program."""
    return is_compiled_by_others(unet) or any(_compiled_call(module) is not None for module in unet.modules())


def is_compiled_by_others(unet: nn.Module) -> bool:
    """Whether it is compiled by the program."""
    if hasattr(unet.forward, "_torchdynamo_orig_callable"):
        return True
    return any(
        isinstance(module, torch._dynamo.OptimizedModule)
        or not isinstance(_compiled_call(module), (_CompiledCall, type(None)))
        for module in unet.modules()
    )


def _compiled_call(module: nn.Module) -> Any:
    call = getattr(module, _COMPILED, None)
    return call.hidden if isinstance(call, CallGuard) else call


def static_timestep(timestep: Any, unet: nn.Module, sample: torch.Tensor) -> torch.Tensor:
    """The timestep in the form that a graph needs: a number would be compiled into it, a tensor on another device would
    prevent a CUDA graph, and another dtype would need another graph.

    A U-Net that projects its timesteps, as those of diffusers do, computes in float32 anyway; one that looks them up in
    a table needs integers.
    """
    projection = getattr(unet, "time_proj", None)
    dtype = None if projection is None or isinstance(projection, nn.Embedding) else torch.float32
    if not isinstance(timestep, torch.Tensor):
        # Created on the device: a copy to it would wait.
        return torch.full((), timestep, dtype=dtype, device=sample.device)
    # A copy: a view of the list of timesteps has another address at every step.
    return timestep.to(sample.device, dtype or timestep.dtype, copy=True)


def _transformer_blocks(unet: nn.Module) -> list[nn.Module]:
    lists = [module for name, module in unet.named_modules() if name.endswith("transformer_blocks")]
    blocks = [block for each in lists if isinstance(each, nn.ModuleList) for block in each]
    if not blocks:
        raise ValueError(
            f"compile='regional' compiles transformer blocks, and this {type(unet).__name__} has none; "
            "compile='default' compiles all of it"
        )
    return blocks


def _why_no_cuda_graphs(unet: nn.Module) -> str:
    """Why the kernels of a U-Net cannot be captured; an empty string if they can. Reads no tensor."""
    registry = vars(unet).get("_diffusers_hook")
    if hasattr(unet, "_hf_hook") or (registry is not None and registry.hooks):
        return "hooks of accelerate or diffusers move the weights of the U-Net, and CUDA graphs need a fixed address"
    device = next((parameter.device.type for parameter in unet.parameters()), "cpu")
    return "" if device == "cuda" else f"the U-Net is on the {device}, and CUDA graphs need a CUDA device"
