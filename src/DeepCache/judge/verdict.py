"""What is right in a generated image: objects counted by colour, shape and place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from DeepCache.judge.captions import Scene
from DeepCache.judge.recogniser import Detection

__all__ = ["PLACE_TOLERANCE", "Verdict", "shares", "verdict"]

PLACE_TOLERANCE = 0.15
"""How far an object may stand from its place in x and in y, as a share of the image's side."""


@dataclass(frozen=True)
class Verdict:
    """What one image shows of the objects that its prompt asks for.

    Args:
        objects: how many objects the prompt asks for.
        objects_right: how many have the right colour and shape at the right place.
        colour_right: for how many the right colour is at their place.
        shape_right: for how many the right shape is at their place.
        place_right: for how many anything is at their place.
        found: how many objects there are in the image, wherever they are.

    Example:
        >>> one = Verdict(objects=2, objects_right=1, colour_right=2, shape_right=1, place_right=2, found=2)
        >>> one.share, one.image_right
        (0.5, False)
    """

    objects: int
    objects_right: int
    colour_right: int
    shape_right: int
    place_right: int
    found: int

    @property
    def share(self) -> float:
        """The share of the objects of this image that are right, 0 to 1."""
        return self.objects_right / self.objects

    @property
    def image_right(self) -> bool:
        """Whether every object is right and there are no others."""
        return self.objects_right == self.objects == self.found


def verdict(scene: Scene, found: Sequence[Detection]) -> Verdict:
    """Compares the objects found in an image with those of the scene that its prompt describes."""
    right = colour = shape = place = 0
    for item, (x, y) in zip(scene.objects, scene.places, strict=True):
        near = [one for one in found if max(abs(one.x - x), abs(one.y - y)) <= PLACE_TOLERANCE]
        place += bool(near)
        colour += any(one.colour == item.colour for one in near)
        shape += any(one.shape == item.shape for one in near)
        right += any((one.colour, one.shape) == (item.colour, item.shape) for one in near)
    return Verdict(len(scene.objects), right, colour, shape, place, len(found))


def shares(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """The shares of many images together, each 0 to 1.

    Args:
        verdicts: those of one image or more.

    Returns:
        `objects_right`, `colour_right`, `shape_right` and `place_right` as shares of all objects, and `images_right` as
        a share of the images. Images with more objects weigh more; the mean of `Verdict.share` weighs all alike.

    Raises:
        ValueError: there are no verdicts.

    Example:
        >>> shares([Verdict(1, 1, 1, 1, 1, 1), Verdict(3, 2, 2, 3, 3, 3)])
        {'objects_right': 0.75, 'colour_right': 0.75, 'shape_right': 1.0, 'place_right': 1.0, 'images_right': 0.5}
    """
    if not verdicts:
        raise ValueError("verdicts must hold those of one image or more, got none")
    objects = sum(one.objects for one in verdicts)
    counted = ("objects_right", "colour_right", "shape_right", "place_right")
    return {name: sum(getattr(one, name) for one in verdicts) / objects for name in counted} | {
        "images_right": sum(one.image_right for one in verdicts) / len(verdicts)
    }
