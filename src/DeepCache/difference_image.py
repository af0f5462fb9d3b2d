"""The difference of two images, as an image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["DifferenceImage", "difference_image"]


@dataclass(frozen=True)
class DifferenceImage:
    """The difference of two images.

    Args:
        image: black where the two are identical, lighter where they differ more.
        largest: the largest difference of a color channel, 0 to 255.
        gain: the amplification.
    """

    image: Image
    largest: int
    gain: int

    @property
    def caption(self) -> str:
        """What the image shows."""
        if self.largest == 0:
            return "No difference: the two images are identical."
        return f"Difference, amplified ×{self.gain}: black is none. The largest is {self.largest} of 255."


def difference_image(image: Image, original: Image, gain: int | None = None) -> DifferenceImage:
    """Computes the absolute difference of two images, pixel by pixel.

    The largest difference of the three color channels counts, because a change of hue can leave the luminance the same.

    Args:
        image: an image.
        original: the image to compare it with, of the same size.
        gain: the amplification; by default the largest power of two at which no pixel saturates.

    Raises:
        ValueError: the sizes differ.

    Example:
        >>> from PIL import Image
        >>> found = difference_image(Image.new("RGB", (8, 8), (10, 20, 37)), Image.new("RGB", (8, 8), (10, 20, 30)))
        >>> found.largest, found.gain
        (7, 32)
    """
    from PIL import ImageChops, ImageOps

    if image.size != original.size:
        sizes = " and ".join(f"{each.width}×{each.height}" for each in (image, original))
        raise ValueError(f"the images must have the same size, got {sizes}")
    channels = ImageChops.difference(image.convert("RGB"), original.convert("RGB")).split()
    difference = reduce(ImageChops.lighter, channels)
    largest = max(value for value, count in enumerate(difference.histogram()) if count)
    if gain is None:
        gain = 1 << ((255 // largest).bit_length() - 1) if largest else 1
    amplified = difference.point([min(gain * value, 255) for value in range(256)])
    # Lighter throughout, so that it can be read with any color vision.
    return DifferenceImage(ImageOps.colorize(amplified, "black", "white", mid="darkorange"), largest, gain)
