"""Fidelity: how close the images drawn with DeepCache are to those of the pipeline without it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

__all__ = ["image_tensor", "psnr", "ssim"]

# The window of SSIM spans 11 pixels and mirrors 5 at the border, which a shorter side has not.
SSIM_SHORTEST_SIDE = 6


def psnr(images: Tensor | Sequence[Image.Image], reference: Tensor | Sequence[Image.Image]) -> Tensor:
    """Peak signal-to-noise ratio of each image, in dB; larger is closer.

    Args:
        images: a tensor (N, C, H, W) of values in 0..1, or a list of PIL images of one size.
        reference: the images to compare with, in the same order and of the same shape.

    Returns:
        A tensor (N,). Identical images give `inf`.

    Raises:
        ValueError: the two differ in shape, or a tensor is not (N, C, H, W).

    Example:
        >>> reference = torch.zeros(2, 3, 16, 16)
        >>> psnr(reference + 0.1, reference)
        tensor([20., 20.])
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    first, second = _pair(images, reference)
    return peak_signal_noise_ratio(first, second, data_range=1.0, reduction="none", dim=(1, 2, 3))


def ssim(images: Tensor | Sequence[Image.Image], reference: Tensor | Sequence[Image.Image]) -> Tensor:
    """Structural similarity of each image (Gaussian window of 11 pixels); 1 is identical.

    Args:
        images: a tensor (N, C, H, W) of values in 0..1, or a list of PIL images of one size.
        reference: the images to compare with, in the same order and of the same shape.

    Returns:
        A tensor (N,).

    Raises:
        ValueError: the two differ in shape, a tensor is not (N, C, H, W), or a side is shorter
            than 6 pixels.

    Example:
        >>> image = torch.rand(1, 3, 16, 16)
        >>> ssim(image, image)
        tensor([1.])
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    first, second = _pair(images, reference)
    height, width = first.shape[-2:]
    if min(height, width) < SSIM_SHORTEST_SIDE:
        raise ValueError(f"SSIM needs images of {SSIM_SHORTEST_SIDE} pixels a side or more, got {width}x{height}")
    values = structural_similarity_index_measure(first, second, data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)  # a tuple is returned only where the full map is asked for
    return values.reshape(len(first))


def image_tensor(images: Tensor | Sequence[Image.Image]) -> Tensor:
    """The images as one float tensor (N, C, H, W) in 0..1; of a tensor only the type changes.

    Raises:
        ValueError: there is no image, the images differ in size, or a tensor is not (N, C, H, W).

    Example:
        >>> image_tensor([Image.new("RGB", (16, 8), "white")]).shape
        torch.Size([1, 3, 8, 16])
    """
    if isinstance(images, Tensor):
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(f"images must be a tensor (N, C, H, W), got the shape {tuple(images.shape)}")
        return images if images.dtype == torch.float64 else images.float()
    if len(images) == 0:
        raise ValueError("images must hold one image or more, got none")
    if len({image.size for image in images}) > 1:
        sizes = ", ".join(f"{image.width}x{image.height}" for image in images)
        raise ValueError(f"images must be of one size, got {sizes}")
    return torch.stack([_pixels(image) for image in images])


def _pixels(image: Image.Image) -> Tensor:
    data = bytearray(image.convert("RGB").tobytes())
    pixels = torch.frombuffer(data, dtype=torch.uint8).reshape(image.height, image.width, 3)
    return pixels.permute(2, 0, 1).float() / 255


def _pair(images: Tensor | Sequence[Image.Image], reference: Tensor | Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
    first, second = image_tensor(images), image_tensor(reference)
    if first.shape != second.shape:
        raise ValueError(
            f"images and reference must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    return first, second
