"""`torch.compile` on a U-Net, put on and taken off with DeepCache.

A U-Net that is compiled has one graph for full steps and one for shallow steps, told apart by the class that it has for
the length of the call. The hooks run outside of the graphs.
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

__all__ = ["ISOLATED", "Compilation", "is_compiled", "is_compiled_by_others", "static_timestep"]

# Compiled code belongs to a function, not to the module that it was compiled for: without this, one U-Net's
# recompilations would use up another's. Older releases of torch do not have it.
ISOLATED = {"isolate_recompiles": True} if "isolate_recompiles" in signature(torch.compile).parameters else {}

# Every kind of step takes a graph, and the first other size one more.
_LIMIT = {"recompile_limit": 64} if "recompile_limit" in signature(torch.compile).parameters else {}

_WITHOUT_CUDA_GRAPHS = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}

_COMPILED = "_compiled_call_impl"

_logger = logging.getLogger(__name__)


class Compilation:
    """What `DeepCacheConfig.compile` asks for, on one U-Net. What has been compiled is kept while it is off.

    Args:
        unet: the U-Net.
        mode: one of `COMPILE_MODES`.

    Raises:
        ValueError: the mode is `regional`, and the U-Net has no transformer blocks; or torch is 2.0.
    """

    def __init__(self, unet: nn.Module, mode: str) -> None:
        self._calls: list[_CompiledCall] = []
        if mode != "none" and not CALLS_WHAT_IS_COMPILED:
            raise ValueError(
                f"compile={mode!r} requires torch 2.1 or newer, this is torch {torch.__version__}. Remove it"
            )
        if mode == "regional":
            # The blocks share their code, and so what is compiled of it.
            self._calls = [_CompiledCall(block, "default", {}) for block in _transformer_blocks(unet)]
        elif mode != "none":
            self._calls = [_CompiledCall(unet, mode, ISOLATED)]

    def attach(self) -> None:
        """Without effect where it is on, and on what somebody else has compiled."""
        for call in self._calls:
            # Where `nn.Module.compile` puts what it makes.
            vars(call.module).setdefault(_COMPILED, call)

    def detach(self) -> None:
        """Leaves the U-Net as it was found; without effect where it is off."""
        for call in self._calls:
            if vars(call.module).get(_COMPILED) is call:
                del vars(call.module)[_COMPILED]


class _CompiledCall:
    """The call of a module, compiled when it is first made: by then its device is known."""

    def __init__(self, module: nn.Module, mode: str, options: dict[str, Any]) -> None:
        self.module = module
        self._mode = mode
        self._options = options
        self._compiled: dict[str, Callable[..., Any]] = {}
        self._told = False

    # Whoever compiles the U-Net around it calls it as it is.
    @not_compiled
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mode = self._mode
        if mode in _WITHOUT_CUDA_GRAPHS and (reason := _why_no_cuda_graphs(self.module)):
            mode = _WITHOUT_CUDA_GRAPHS[mode]
            if not self._told:
                self._told = True
                _logger.warning("compile=%r goes on without CUDA graphs (as %r): %s", self._mode, mode, reason)
        if mode not in self._compiled:
            options: dict[str, Any] = {**self._options, **_LIMIT}
            self._compiled[mode] = torch.compile(self.module._call_impl, mode=mode, **options)
        return self._compiled[mode](*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # Compiled code is neither copied nor pickled.
        return self.__dict__ | {"_compiled": {}}


def is_compiled(unet: nn.Module) -> bool:
    """Whether `torch.compile` is on a U-Net as the pipeline has it, whole or in part, whoever put it there."""
    compiled = any(_is_wrapper(module) or _compiled_call(module) is not None for module in unet.modules())
    return compiled or _is_dynamo_function(unet.forward)


def is_compiled_by_others(unet: nn.Module) -> bool:
    """Whether somebody else put it there."""
    if _is_dynamo_function(unet.forward) or any(map(_is_wrapper, unet.modules())):
        return True
    calls = (_compiled_call(module) for module in unet.modules())
    return any(call is not None and not isinstance(call, _CompiledCall) for call in calls)


def _compiled_call(module: nn.Module) -> Any:
    call = getattr(module, _COMPILED, None)
    return call.hidden if isinstance(call, CallGuard) else call


def _is_wrapper(module: nn.Module) -> bool:
    return isinstance(module, torch._dynamo.OptimizedModule)


def _is_dynamo_function(forward: Any) -> bool:
    return hasattr(forward, "_torchdynamo_orig_callable")


def static_timestep(timestep: Any, unet: nn.Module, sample: torch.Tensor) -> torch.Tensor:
    """The timestep as a graph wants it, whatever the scheduler: a number would be compiled into it, a tensor on another
    device would keep it out of a CUDA graph, and another dtype would take a graph of its own.

    A U-Net that projects its timesteps, as those of diffusers do, counts in float32 anyhow; one that looks them up in a
    table takes whole numbers.

    Args:
        timestep: as given to the U-Net.
        unet: the U-Net.
        sample: its sample.
    """
    projection = getattr(unet, "time_proj", None)
    dtype = None if projection is None or isinstance(projection, nn.Embedding) else torch.float32
    if not isinstance(timestep, torch.Tensor):
        # Written on the device: to copy it there would wait.
        return torch.full((), timestep, dtype=dtype, device=sample.device)
    # A tensor of its own: a view of the list of timesteps begins elsewhere in memory at every step.
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
    """Why the kernels of a U-Net cannot be captured; an empty string where they can. Reads no tensor."""
    registry = vars(unet).get("_diffusers_hook")
    if hasattr(unet, "_hf_hook") or (registry is not None and registry.hooks):
        return "hooks of accelerate or diffusers move the weights of the U-Net, and these must stay where they are"
    device = next((parameter.device.type for parameter in unet.parameters()), "cpu")
    return "" if device == "cuda" else f"the U-Net is on the {device}, and they take a CUDA device"
