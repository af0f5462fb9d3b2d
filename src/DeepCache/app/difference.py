"""Where two pictures differ, as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

from PIL import Image, ImageChops

__all__ = ["DifferenceMap", "difference_map"]

# From no difference to the largest that can be shown, evenly spread: lighter all the way, from blue to yellow, which
# people tell apart whatever colours they see.
_COLOURS = ((0, 0, 0), (16, 42, 110), (62, 96, 150), (140, 140, 128), (222, 184, 72), (255, 236, 110), (255, 255, 255))

_BRIGHTEST = 255


@dataclass(frozen=True)
class DifferenceMap:
    """Where two pictures differ.

    Args:
        picture: black where they are identical, and the lighter the more they differ.
        largest: the largest difference of a colour channel, of 255.
        gain: by how much the differences are amplified, a power of two.
    """

    picture: Image.Image
    largest: int
    gain: int

    @property
    def identical(self) -> bool:
        """Whether there is no difference at all."""
        return self.largest == 0

    @property
    def amplification(self) -> str:
        """By how much the differences are amplified, such as `×32`."""
        return f"×{self.gain}"

    @property
    def in_words(self) -> str:
        """What the picture shows."""
        if self.identical:
            return "No difference: the two pictures are identical."
        return (
            f"Difference of the two pictures, amplified {self.amplification}: black is none. The largest is "
            f"{self.largest} of {_BRIGHTEST}."
        )


def difference_map(image: Image.Image, original: Image.Image) -> DifferenceMap:
    """The absolute difference of two pictures, pixel by pixel.

    Of the three colour channels the largest difference counts: a change of hue can leave the luminance as it was. It is
    amplified as much as the largest difference can take and stay within the range.

    Args:
        image: a picture.
        original: the one to compare it with, of the same size.

    Returns:
        The difference as a picture, and how large it is.

    Raises:
        ValueError: the sizes differ.

    Example:
        >>> found = difference_map(Image.new("RGB", (8, 8), (10, 20, 37)), Image.new("RGB", (8, 8), (10, 20, 30)))
        >>> found.largest, found.amplification
        (7, '×32')
    """
    if image.size != original.size:
        raise ValueError(
            f"the pictures must be of one size, got {image.width}×{image.height} and {original.width}×{original.height}"
        )
    channels = ImageChops.difference(image.convert("RGB"), original.convert("RGB")).split()
    differences = reduce(ImageChops.lighter, channels)
    largest = max(value for value, count in enumerate(differences.histogram()) if count)
    gain = 1 << ((_BRIGHTEST // largest).bit_length() - 1) if largest else 1
    colours = [_colour(min(gain * value, _BRIGHTEST)) for value in range(_BRIGHTEST + 1)]
    ramps = [differences.point([colour[channel] for colour in colours]) for channel in range(3)]
    return DifferenceMap(Image.merge("RGB", ramps), largest, gain)


def _colour(value: int) -> tuple[int, ...]:
    """The colour of an amplified difference, 0 to 255."""
    place = value / _BRIGHTEST * (len(_COLOURS) - 1)
    between = list(pairwise(_COLOURS))
    number = min(int(place), len(between) - 1)
    darker, lighter = between[number]
    part = place - number
    return tuple(round(low + part * (high - low)) for low, high in zip(darker, lighter, strict=True))
