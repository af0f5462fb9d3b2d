"""Judges whether images show what their prompts ask for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import torch
from PIL import Image
from safetensors.torch import load
from torch import Tensor

from DeepCache.judge.captions import Scene, parse_caption
from DeepCache.judge.recogniser import SIDE, Detection, Recogniser
from DeepCache.metrics import image_tensor

JUDGED = ("shapes",)
"""The models that have a judge."""
PLACE_TOLERANCE = 0.15
"""How far an object may stand from its place in x and in y, as a share of the image's side."""
_BATCH = 64


@dataclass(frozen=True)
class Verdict:
    """The objects that one image shows of those that its prompt asks for.

    Args:
        objects: how many objects the prompt asks for.
        objects_right: how many of them have the right colour and shape at the right place.
        colour_right: how many have the right colour at their place.
        shape_right: how many have the right shape at their place.
        place_right: how many have any object at their place.
        found: how many objects the image shows in total.

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
    """Compares the objects found in an image with those of a scene."""
    right = colour = shape = place = 0
    for item, (x, y) in zip(scene.objects, scene.places, strict=True):
        near = [one for one in found if max(abs(one.x - x), abs(one.y - y)) <= PLACE_TOLERANCE]
        place += bool(near)
        colour += any(one.colour == item.colour for one in near)
        shape += any(one.shape == item.shape for one in near)
        right += any((one.colour, one.shape) == (item.colour, item.shape) for one in near)
    return Verdict(len(scene.objects), right, colour, shape, place, len(found))


def shares(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """The shares of all objects and of all images that are right, each 0 to 1.

    Images with more objects count more; the mean of `Verdict.share` weights all images equally.

    Returns:
        `objects_right`, `colour_right`, `shape_right` and `place_right` as shares of the objects, and `images_right` as
        a share of the images.

    Raises:
        ValueError: `verdicts` is empty.

    Example:
        >>> shares([Verdict(1, 1, 1, 1, 1, 1), Verdict(3, 2, 2, 3, 3, 3)])
        {'objects_right': 0.75, 'colour_right': 0.75, 'shape_right': 1.0, 'place_right': 1.0, 'images_right': 0.5}
    """
    if not verdicts:
        raise ValueError("verdicts must not be empty")
    objects = sum(one.objects for one in verdicts)
    counted = ("objects_right", "colour_right", "shape_right", "place_right")
    return {name: sum(getattr(one, name) for one in verdicts) / objects for name in counted} | {
        "images_right": sum(one.image_right for one in verdicts) / len(verdicts)
    }


class Judge:
    """Counts the objects that are generated with the right colour, shape and place.

    Fidelity compares an image with the one generated without caching; a judge compares it with the prompt, and an image
    that differs from the original can be equally right. Sizes, textures and backgrounds are not judged.

    Args:
        recogniser: the network that finds the objects. `load_judge` returns a judge with a trained one.
    """

    def __init__(self, recogniser: Recogniser) -> None:
        self.recogniser = recogniser.float().cpu().eval()

    def check(self, prompts: Sequence[str]) -> None:
        """Checks prompts before any image is generated.

        Raises:
            TypeError: the prompts are one string.
            ValueError: a prompt is not a caption of the model.
        """
        if isinstance(prompts, str):
            raise TypeError("prompts must be a list with one prompt per image, got one string")
        for prompt in prompts:
            parse_caption(prompt)

    def verdicts(self, images: Tensor | Sequence[Image.Image], prompts: Sequence[str]) -> list[Verdict]:
        """Judges each image by its prompt.

        Args:
            images: a tensor (N, 3, 64, 64) of values in 0..1, or a list of PIL images of 64x64 pixels. The network
                always runs on the CPU in float32.
            prompts: N prompts, in the order of the images.

        Raises:
            TypeError: the prompts are one string.
            ValueError: a prompt is not a caption of the model, the numbers of prompts and images differ, or the images
                do not have 64x64 pixels, 3 channels and values in 0..1.

        Example:
            >>> from PIL import Image, ImageDraw
            >>> image = Image.new("RGB", (64, 64), (220, 215, 205))
            >>> ImageDraw.Draw(image).rectangle((20, 20, 43, 43), fill=(224, 33, 36))
            >>> [one] = load_judge("shapes").verdicts([image], ["a red square"])
            >>> one.share
            1.0
        """
        self.check(prompts)
        pixels = image_tensor(images)
        if len(prompts) != len(pixels):
            raise ValueError(f"prompts must have one entry per image, got {len(prompts)} for {len(pixels)} images")
        if pixels.shape[1:] != (3, SIDE, SIDE):
            raise ValueError(
                f"images must have 3 channels and {SIDE}x{SIDE} pixels for the judge, got the shape "
                f"{tuple(pixels.shape)}. Generate at the model's own size."
            )
        low, high = (value.item() for value in pixels.aminmax())
        if not (low >= 0 and high <= 1):  # also true for NaN
            raise ValueError(f"images must have values in 0..1, got {low:g} to {high:g}")
        parts = torch.split(pixels.detach().cpu().float(), _BATCH)
        found = [objects for part in parts for objects in self.recogniser.detect(part * 2 - 1)]
        return [verdict(parse_caption(prompt), objects) for prompt, objects in zip(prompts, found, strict=True)]


def load_judge(model: str | os.PathLike[str] = "shapes") -> Judge:
    """Loads the judge of a bundled model.

    Args:
        model: a name in `JUDGED`.

    Raises:
        ValueError: the model has no judge.

    Example:
        >>> judge = load_judge("shapes")
        >>> judge.check(["a red circle left of a blue square"])
        >>> judge.check(["a bowl of soup"])
        Traceback (most recent call last):
        ...
        ValueError: 'a bowl of soup' is not a prompt of the model 'shapes'; ...
    """
    name = os.fspath(model)
    if name not in JUDGED:
        raise ValueError(f"the model {name!r} has no judge: only {', '.join(JUDGED)} has one. Use the CLIP score.")
    recogniser = Recogniser()
    recogniser.load_state_dict(load((files("DeepCache.judge") / f"{name}.safetensors").read_bytes()))
    return Judge(recogniser)
