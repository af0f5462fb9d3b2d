"""The arguments of the first call of a denoiser that a pipeline makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from DeepCache.engine.layouts.layout import Args, Kwargs


def first_call(
    denoisers: nn.Module | list[nn.Module], run: Callable[[], Any], prepend: bool = True
) -> tuple[Args, Kwargs]:
    """Runs a pipeline up to the first call of its denoiser, or of any of several, and returns the arguments.

    What the pipeline records about the run until then (its guidance scale, the scheduler's timesteps) stays. The hooks
    that are already on the denoiser run first with `prepend=False`, and not at all otherwise. Raises a `RuntimeError`
    if the pipeline ends without a call.
    """

    class Reached(Exception):
        pass

    found: list[tuple[Args, Kwargs]] = []

    def stop(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        found.append((args, kwargs))
        raise Reached

    modules = denoisers if isinstance(denoisers, list) else [denoisers]
    handles = [module.register_forward_pre_hook(stop, with_kwargs=True, prepend=prepend) for module in modules]
    try:
        run()
    except Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise RuntimeError(f"the pipeline ended without calling its {type(modules[0]).__name__}")
    return found[0]
