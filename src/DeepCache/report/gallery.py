"""The sample images of an ablation: without caching, with DeepCache, and the difference."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageChops

from DeepCache.report.fidelity import FidelityGroup
from DeepCache.report.html import image_uri
from DeepCache.report.sources import Source

__all__ = ["AMPLIFIED", "Gallery", "Prompt", "Sample", "gallery", "read_strip", "shown"]

AMPLIFIED = 8
"""The factor by which differences are amplified."""

_LONGEST_SIDE = 256
_AT_MOST = 6
_PUBLISHED = ("I=3 B=0", "I=5 B=0")


@dataclass(frozen=True)
class Sample:
    """An image of one setting, its amplified difference from the original, its PSNR (None if not measured), and the
    cost and average seconds of the setting."""

    label: str
    cached: Image.Image
    difference: Image.Image
    psnr: float | None
    mac_share: float
    seconds: float


@dataclass(frozen=True)
class Prompt:
    """A prompt and seed with the image without caching and those with DeepCache, from the cheapest."""

    text: str
    seed: int
    original: Image.Image
    samples: list[Sample] = field(default_factory=list)


@dataclass(frozen=True)
class Gallery:
    """The samples of a group, the average seconds without caching, and notes about images that cannot be shown."""

    prompts: list[Prompt]
    original_seconds: float | None
    notes: list[str]


def gallery(source: Source, group: FidelityGroup) -> Gallery:
    """The samples of up to six settings of the front, spread over the cost, and of the published settings."""
    reference = group.reference
    if reference is None:
        return Gallery([], None, [])
    seconds = reference["seconds"] / group.images
    settings = source.result["settings"]
    texts, seeds = settings["prompts"], settings["seeds"]
    try:
        originals = read_strip(source, reference["samples"], group.images)
    except (OSError, ValueError) as error:
        return Gallery([], seconds, [f"the images without caching are needed for samples: {error}"])
    prompts = [
        Prompt(texts[number % len(texts)], int(seeds[number // len(texts)]) + number % len(texts), original)
        for number, original in enumerate(originals)
    ]
    notes: dict[str, list[str]] = {}
    for cell in _chosen(group):
        try:
            images = read_strip(source, cell["samples"], group.images)
            if len(images) != len(originals):
                raise ValueError(f"{cell['samples']!r} holds {len(images)} images instead of {len(originals)}")
        except (OSError, ValueError) as error:
            notes.setdefault(str(error), []).append(cell["label"])
            continue
        values = cell["psnr"]["values"] if cell["psnr"] is not None else []
        for prompt, image, psnr in zip(prompts, images, [*values, *[None] * len(images)], strict=False):
            difference = ImageChops.difference(prompt.original, image).point(lambda value: min(255, AMPLIFIED * value))
            figures = psnr, cell["mac_share"], cell["seconds"] / group.images
            prompt.samples.append(Sample(cell["label"], image, difference, *figures))
    shown = [prompt for prompt in prompts if prompt.samples]
    return Gallery(shown, seconds, [f"{', '.join(labels)}: {error}" for error, labels in notes.items()])


def _chosen(group: FidelityGroup) -> list[Mapping[str, Any]]:
    front = [cell for cell in group.front if cell["method"] == "DeepCache"]
    count = min(_AT_MOST, len(front))
    spread = [front[round(number * (len(front) - 1) / max(1, count - 1))]["label"] for number in range(count)]
    return [cell for cell in group.deepcache if cell["label"] in (*spread, *_PUBLISHED)]


def read_strip(source: Source, name: str | None, images: int) -> list[Image.Image]:
    """The images of a strip. Only files in the folder of the result file are read.

    Raises:
        ValueError: there is no strip, the path is outside the folder, or the file has something else.
        OSError: the file cannot be read.
    """
    if name is None:
        raise ValueError("no images are kept")
    folder = source.path.parent.resolve()
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f"the path {name!r} is outside the folder of {source.name!r}")
    if not path.is_file():
        raise FileNotFoundError(f"the file {name!r} does not exist")
    width, height = source.result["settings"]["width"], source.result["settings"]["height"]
    try:
        with warnings.catch_warnings():
            # Long strips have many pixels.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as strip:
                # Checked before it is unpacked, so that no small file becomes a large image.
                fits = width > 0 and strip.width % width == 0 and strip.height == height
                if not fits or not 1 <= strip.width // width <= images:
                    found = f"{strip.width}×{strip.height}"
                    raise ValueError(f"{name!r} is {found} pixels, not a row of images of {width}×{height}")
                row = strip.convert("RGB")
    # Messages of Pillow name the folder, which readers of the page should not see.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name!r} is damaged or not a PNG") from error
    return [row.crop((left, 0, left + width, height)) for left in range(0, row.width, width)]


def shown(image: Image.Image) -> tuple[str, int, int]:
    """The address, width and height of an image on the page: PNG, or WebP if it is scaled down."""
    small = image.copy()
    small.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
    if small.size == image.size:
        return image_uri(small, "png", optimize=True), *small.size
    return image_uri(small, "webp", quality=92), *small.size
