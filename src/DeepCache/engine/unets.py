"""The denoisers of a pipeline, found by name or by shape, and the schedulers that go with them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from DeepCache.engine.layouts import is_recognised

__all__ = ["component_of", "is_from_diffusers", "running_pipeline", "scheduler_of", "unets_of"]


def unets_of(pipe: Any) -> dict[str, nn.Module]:
    """The denoisers of a pipeline by the name of the component, without what is wrapped around them.

    That is `pipe.unet`. A pipeline without it is searched for components of a shape that DeepCache knows, as those that
    stand one behind the other in unCLIP: `decoder`, `super_res_first`, `super_res_last`. A denoiser by itself is its
    own, by the name `""`.

    Raises:
        TypeError: there is none.

    Example:
        >>> from DeepCache.models import load_pipeline
        >>> list(unets_of(load_pipeline("shapes")))
        ['unet']
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
    unets = {name: _unwrapped(component) for name, component in components.items() if _has_the_shape(component)}
    if not unets:
        where = f" among its components ({', '.join(components)})" if components else " in its attribute 'unet'"
        raise TypeError(
            "DeepCache needs a denoiser with skip connections from its first layers to its last (a U-Net, or a "
            f"transformer with long skips); {kind} has none{where}. For other transformers use diffusers' own caches "
            "(enable_cache)"
        )
    return unets


def component_of(pipe: Any, name: str) -> Any:
    """A denoiser as its pipeline has it: what `torch.compile` has wrapped around it, where there is something."""
    return getattr(pipe, name) if name else pipe


def scheduler_of(pipe: Any, name: str) -> Any:
    """The scheduler of a denoiser, or None: of `prior_prior` the pipeline's `prior_scheduler`, else its `scheduler`."""
    if "_" in name:
        own = getattr(pipe, f"{name.split('_')[0]}_scheduler", None)
        if own is not None:
            return own
    return getattr(pipe, "scheduler", None)


def running_pipeline(denoiser: nn.Module, name: str) -> Any:
    """The pipeline in whose call this one is made, or None: several may share a denoiser, and each has a scheduler and
    a guidance scale of its own. It is found among the callers, so this is for the start of a run.

    Args:
        denoiser: the denoiser that is being called.
        name: what a pipeline calls it; `""` for `unet`.
    """
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


def _has_the_shape(component: Any) -> bool:
    """Whether a component is called with a sample and a timestep and can be cut. Autoencoders and motion adapters have
    blocks on the way down and up too, but take no second argument."""
    return isinstance(component, nn.Module) and _is_called_as_one(_unwrapped(component))


def _unwrapped(module: nn.Module) -> nn.Module:
    """The denoiser itself, where `torch.compile`, peft, DeepSpeed or a program has wrapped a module around it."""
    if isinstance(module, torch._dynamo.OptimizedModule):
        return _unwrapped(module._orig_mod)
    # DataParallel calls copies of what is in it.
    if is_recognised(module) or isinstance(module, nn.DataParallel):
        return module
    return next((inner for inner in module.modules() if inner is not module and _is_called_as_one(inner)), module)


def _is_called_as_one(module: nn.Module) -> bool:
    if not is_recognised(module):
        return False
    # Off the class: offloading replaces `forward` on the instance.
    _, *parameters = inspect.signature(type(module).forward).parameters.values()
    return len(parameters) >= 2 and all(parameter.default is parameter.empty for parameter in parameters[:2])
