"""The arguments of the first call of a denoiser that a pipeline makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["first_call"]


def first_call(denoiser: nn.Module, run: Callable[[], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Runs a pipeline up to the first call of its denoiser and no further.

    What the pipeline notes about the run until then (its guidance scale, the scheduler's timesteps) stays.

    Args:
        denoiser: the denoiser.
        run: runs the pipeline.

    Returns:
        The positional and the keyword arguments.

    Raises:
        RuntimeError: the pipeline ended without calling it.

    Example:
        >>> layer = nn.Identity()
        >>> first_call(layer, lambda: layer(1))
        ((1,), {})
    """

    class Reached(Exception):
        pass

    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args, kwargs))
        raise Reached

    handle = denoiser.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        run()
    except Reached:
        pass
    finally:
        handle.remove()
    if not found:
        raise RuntimeError(f"the pipeline ended without calling its {type(denoiser).__name__}")
    return found[0]
