"""`load_judge`: whether images show what their prompts ask for, for the models that come with the package."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files

import torch
from PIL import Image
from safetensors.torch import load
from torch import Tensor

from DeepCache.judge.captions import parse_caption
from DeepCache.judge.recogniser import SIDE, Recogniser
from DeepCache.judge.verdict import Verdict, verdict
from DeepCache.metrics import image_tensor

__all__ = ["JUDGED", "Judge", "load_judge"]

JUDGED = ("shapes",)
"""The models that have a judge."""
_BATCH = 64


class Judge:
    """Counts the objects that are generated with the right colour, shape and place.

    Fidelity compares with the images generated without caching. A judge compares with the prompt: an image that
    differs from the original can be as right as it. Sizes, textures and backgrounds are not judged.

    Args:
        recogniser: the network that finds the objects. `load_judge` returns a judge with a trained one.
    """

    def __init__(self, recogniser: Recogniser) -> None:
        self.recogniser = recogniser.float().cpu().eval()

    def check(self, prompts: Sequence[str]) -> None:
        """Raises what `verdicts` would raise for these prompts, before any image is generated.

        Raises:
            TypeError: the prompts are one string.
            ValueError: a prompt is not one of the model's.
        """
        if isinstance(prompts, str):
            raise TypeError("prompts must be a list of one prompt for each image, got one string")
        for prompt in prompts:
            parse_caption(prompt)

    def verdicts(self, images: Tensor | Sequence[Image.Image], prompts: Sequence[str]) -> list[Verdict]:
        """Judges each image by its prompt.

        Args:
            images: a tensor (N, 3, 64, 64) of values in 0..1, or a list of PIL images of 64x64 pixels. The network runs
                on the CPU in float32 regardless of their device and type.
            prompts: N prompts, in the order of the images.

        Returns:
            A `Verdict` for each image.

        Raises:
            TypeError: the prompts are one string.
            ValueError: a prompt is not one of the model's, there are not as many prompts as images, or the images are
                not of 64x64 pixels with 3 channels and values in 0..1.

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
            raise ValueError(f"there must be one prompt for each image, got {len(prompts)} for {len(pixels)} images")
        if pixels.shape[1:] != (3, SIDE, SIDE):
            raise ValueError(
                f"the judge reads images of 3 channels and {SIDE}x{SIDE} pixels, got the shape {tuple(pixels.shape)}; "
                "generate at the model's own size"
            )
        low, high = (value.item() for value in pixels.aminmax())
        if not (low >= 0 and high <= 1):  # NaN is in no range
            raise ValueError(f"images must have values in 0..1, got {low:g} to {high:g}")
        found = [
            objects
            for part in torch.split(pixels.detach().cpu().float(), _BATCH)
            for objects in self.recogniser.detect(part * 2 - 1)
        ]
        return [verdict(parse_caption(prompt), objects) for prompt, objects in zip(prompts, found, strict=True)]


def load_judge(model: str | os.PathLike[str] = "shapes") -> Judge:
    """Loads the judge of a model that comes with the package.

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
