"""The denoisers of a pipeline, found by name or by structure, and their schedulers."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from DeepCache.engine.layouts import is_recognised


def unets_of(pipe: Any) -> dict[str, nn.Module]:
    """The denoisers of a pipeline by the name of the component, without wrappers.

    That is `pipe.unet`. A pipeline without it is searched for components with a known structure, such as the three of
    unCLIP: `decoder`, `super_res_first`, `super_res_last`. A denoiser passed as `pipe` has the name `""`. Raises a
    `TypeError` if there is none.
    """
    unet = getattr(pipe, "unet", None)
    if isinstance(unet, nn.Module):
        return {"unet": _unwrapped(unet)}
    if isinstance(pipe, nn.Module):
        return {"": _unwrapped(pipe)}
    kind = type(pipe).__name__
    if unet is not None:
        raise TypeError(
            f"DeepCache needs a U-Net that is a torch module; that of {kind} is of type {type(unet).__name__}"
        )
    components = getattr(pipe, "components", {})
    modules = {name: component for name, component in components.items() if isinstance(component, nn.Module)}
    unwrapped = {name: _unwrapped(module) for name, module in modules.items()}
    unets = {name: module for name, module in unwrapped.items() if _is_called_as_one(module)}
    if not unets:
        where = f" among its components ({', '.join(components)})" if components else " in its attribute 'unet'"
        raise TypeError(
            "DeepCache needs a denoiser with skip connections from its first layers to its last (a U-Net, or a "
            f"transformer with long skips); {kind} has none{where}. For other transformers use diffusers' own caches "
            "(enable_cache)"
        )
    return unets


def component_of(pipe: Any, name: str) -> Any:
    """A denoiser as its pipeline has it, with the wrapper of `torch.compile` if there is one."""
    return getattr(pipe, name) if name else pipe


def scheduler_of(pipe: Any, name: str) -> Any:
    """The scheduler of a denoiser, or None: of `prior_prior` the `prior_scheduler`, else the `scheduler`."""
    if "_" in name:
        own = getattr(pipe, f"{name.split('_')[0]}_scheduler", None)
        if own is not None:
            return own
    return getattr(pipe, "scheduler", None)


def running_pipeline(denoiser: nn.Module, name: str) -> Any:
    """The pipeline that is calling the denoiser, found among the callers, or None. Several pipelines, each with its own
    scheduler and guidance scale, may share a denoiser. `name` is a pipeline's name for it; `""` for `unet`."""
    frame = inspect.currentframe()
    while frame is not None:
        # Pipelines, and the blocks of modular ones.
        for caller in (frame.f_locals.get("self"), frame.f_locals.get("components")):
            component = getattr(caller, name or "unet", None) if hasattr(caller, "scheduler") else None
            if isinstance(component, nn.Module) and _unwrapped(component) is denoiser:
                return caller
        frame = frame.f_back
    return None


def is_from_diffusers(pipe: Any) -> bool:
    """Whether the loop of a pipeline is one of diffusers' own."""
    return any(base.__module__.startswith("diffusers.") for base in type(pipe).__mro__)


def _unwrapped(module: nn.Module) -> nn.Module:
    """The denoiser itself, if `torch.compile`, peft, DeepSpeed or a program has wrapped a module around it."""
    if isinstance(module, torch._dynamo.OptimizedModule):
        return _unwrapped(module._orig_mod)
    # DataParallel calls copies of its module.
    if is_recognised(module) or isinstance(module, nn.DataParallel):
        return module
    return next((inner for inner in module.modules() if inner is not module and _is_called_as_one(inner)), module)


def _is_called_as_one(module: nn.Module) -> bool:
    """Whether a module is called with a sample and a timestep and can be cut. Autoencoders and motion adapters have
    down and up blocks too, but no second required argument."""
    if not is_recognised(module):
        return False
    # Of the class, since offloading replaces `forward` on the instance.
    _, *parameters = inspect.signature(type(module).forward).parameters.values()
    return len(parameters) >= 2 and all(parameter.default is parameter.empty for parameter in parameters[:2])
