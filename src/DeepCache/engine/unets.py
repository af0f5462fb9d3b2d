"""The denoising U-Nets of a pipeline, found by name or by shape."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

__all__ = ["unets_of"]


def unets_of(pipe: Any) -> dict[str, nn.Module]:
    """The denoising U-Nets of a pipeline by the name of the component; the modules themselves where `torch.compile`
    has wrapped them.

    That is `pipe.unet`. A pipeline without it is searched for components of a U-Net's shape, as those that stand one
    behind the other in unCLIP: `decoder`, `super_res_first`, `super_res_last`.

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
    kind = type(pipe).__name__
    if unet is not None:
        raise TypeError(
            f"DeepCache needs a U-Net that is a torch module; that of {kind} is of type {type(unet).__name__}"
        )
    components = getattr(pipe, "components", {})
    unets = {name: _unwrapped(component) for name, component in components.items() if _has_the_shape(component)}
    if not unets:
        where = f" among its components ({', '.join(components)})" if components else " in its attribute 'unet'"
        raise TypeError(f"DeepCache needs a pipeline with a denoising U-Net; {kind} has none{where}")
    return unets


def _has_the_shape(component: Any) -> bool:
    """Blocks on the way down and up, called with a sample and a timestep. Autoencoders and motion adapters have such
    blocks too, but take no second argument."""
    if not isinstance(component, nn.Module):
        return False
    unet = _unwrapped(component)
    if not all(isinstance(getattr(unet, name, None), nn.ModuleList) for name in ("down_blocks", "up_blocks")):
        return False
    # Off the class: offloading replaces `forward` on the instance.
    _, *parameters = inspect.signature(type(unet).forward).parameters.values()
    return len(parameters) >= 2 and all(parameter.default is parameter.empty for parameter in parameters[:2])


def _unwrapped(module: nn.Module) -> nn.Module:
    if isinstance(module, torch._dynamo.OptimizedModule):
        original: nn.Module = module._orig_mod
        return original
    return module
