"""Refuses images with NaN or infinite values, which diffusers saves as black ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

__all__ = ["NotFiniteError", "check_finite", "finite_images"]

_FIXES = "Use float32 or bfloat16, run the VAE in float32, lower the guidance scale, or check the weights."


class NotFiniteError(ValueError):
    """An image has NaN or infinite values."""


def check_finite(images: Any, where: str) -> None:
    """Refuses images that are none.

    Args:
        images: a tensor or an array.
        where: what they come from, for the message.

    Raises:
        NotFiniteError: a value is NaN or infinite.

    Example:
        >>> import torch
        >>> check_finite(torch.ones(1, 3, 8, 8), "the model")
    """
    if not _is_finite(images):
        raise NotFiniteError(f"{where} produced NaN or infinite values, which are not an image. {_FIXES}")


@contextmanager
def finite_images(pipe: Any) -> Iterator[None]:
    """Checks what a pipeline decodes before it makes images of 8 bits of it, which have no NaN.

    Args:
        pipe: the pipeline; it is called within the context.

    Raises:
        NotFiniteError: out of the call of the pipeline, where a value is NaN or infinite.
    """
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
            if callable(getattr(owner, name, None)):
                stack.enter_context(_wrapped(owner, name, wrap))
        yield


@contextmanager
def _wrapped(owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Another method on one object."""
    before = vars(owner).get(name)
    setattr(owner, name, wrap(getattr(owner, name)))
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _is_finite(values: Any) -> bool:
    """Whether all values are finite; what is no tensor or array counts as that."""
    import numpy as np
    import torch

    if isinstance(values, torch.Tensor):
        return bool(torch.isfinite(values).all())
    if isinstance(values, np.ndarray) and np.issubdtype(values.dtype, np.floating):
        return bool(np.isfinite(values).all())
    return True
