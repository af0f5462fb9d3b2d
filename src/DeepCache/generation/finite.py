"""Detects NaN and infinite values, which diffusers would save as black images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from DeepCache.errors import DeepCacheError

__all__ = ["NotFiniteError", "check_finite", "finite_images"]

_FIXES = "Use float32 or bfloat16, run the VAE in float32, lower the guidance scale, or check the weights."


class NotFiniteError(DeepCacheError, ValueError):
    """An image has NaN or infinite values."""


def check_finite(images: Any, where: str) -> None:
    """Raises a `NotFiniteError` that names `where` if a tensor or array has NaN or infinite values."""
    if not _is_finite(images):
        raise NotFiniteError(f"{where} produced NaN or infinite values, which are not an image. {_FIXES}")


@contextmanager
def finite_images(pipe: Any) -> Iterator[None]:
    """Checks the decoded images of a pipeline called in this context, before they become 8-bit images without NaN."""
    latents: list[Any] = []
    dtype = str(getattr(pipe, "dtype", "")).removeprefix("torch.")

    def decode(decode: Callable[..., Any]) -> Callable[..., Any]:
        def kept(*args: Any, **kwargs: Any) -> Any:
            latents[:] = args or kwargs.values()
            return decode(*args, **kwargs)

        return kept

    def to_images(convert: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*args: Any, **kwargs: Any) -> Any:
            by_vae = bool(latents) and _is_finite(latents[0])
            for images in [*args, *kwargs.values()]:
                check_finite(images, f"{'the VAE' if by_vae else 'the model'} in {dtype}")
            return convert(*args, **kwargs)

        return checked

    with ExitStack() as stack:
        for owner, name, wrap in (
            (getattr(pipe, "vae", None), "decode", decode),
            (getattr(pipe, "image_processor", None), "postprocess", to_images),
            (pipe, "numpy_to_pil", to_images),
        ):
            method = getattr(owner, name, None)
            if callable(method):
                before = vars(owner).get(name)
                setattr(owner, name, wrap(method))
                stack.callback(_restore, owner, name, before)
        yield


def _restore(owner: Any, name: str, before: Any) -> None:
    if before is None:
        delattr(owner, name)
    else:
        setattr(owner, name, before)


def _is_finite(values: Any) -> bool:
    """Whether all values are finite; True for anything but a tensor or an array."""
    import numpy as np
    import torch

    if isinstance(values, torch.Tensor):
        return bool(torch.isfinite(values).all())
    if isinstance(values, np.ndarray) and np.issubdtype(values.dtype, np.floating):
        return bool(np.isfinite(values).all())
    return True
