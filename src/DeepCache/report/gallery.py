"""The sample images of an ablation: without caching, with DeepCache, and where the two differ."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image, ImageChops

from DeepCache.report.fidelity import FidelityGroup
from DeepCache.report.sources import Source

__all__ = ["AMPLIFIED", "Gallery", "Picture", "Prompt", "Sample", "gallery", "read_strip"]

AMPLIFIED = 8
"""By how much the differences are amplified."""

_LONGEST_SIDE = 256
_QUALITY = 92
_AT_MOST = 6
_FAMOUS = ("I=3 B=0", "I=5 B=0")


@dataclass(frozen=True)
class Picture:
    """An image, scaled down where it is large.

    Args:
        image: as it was drawn.
    """

    image: Image.Image

    @cached_property
    def shown(self) -> Image.Image:
        """As it is shown."""
        shown = self.image.copy()
        shown.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
        return shown

    @cached_property
    def data(self) -> str:
        """As a data URI: PNG, where it was scaled down WebP."""
        buffer = io.BytesIO()
        whole = self.shown.size == self.image.size
        if whole:
            self.shown.save(buffer, "PNG", optimize=True)
        else:
            self.shown.save(buffer, "WEBP", quality=_QUALITY)
        kind = "png" if whole else "webp"
        return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True)
class Sample:
    """One image of one setting.

    Args:
        label: the setting.
        cached: with DeepCache.
        difference: where it differs from the original, amplified.
        psnr: of this image, in dB; None where it was not measured.
        mac_share: the cost of the setting.
        seconds: what an image took, on average over a run.
    """

    label: str
    cached: Picture
    difference: Picture
    psnr: float | None
    mac_share: float
    seconds: float


@dataclass(frozen=True)
class Prompt:
    """The samples of one prompt and seed.

    Args:
        text: the prompt.
        seed: the seed.
        original: the image without caching.
        samples: those with DeepCache, the cheapest first.
    """

    text: str
    seed: int
    original: Picture
    samples: list[Sample]


@dataclass(frozen=True)
class Gallery:
    """The samples of a group.

    Args:
        prompts: one for each image.
        original_seconds: what an image without caching took, on average over a run.
        notes: what could not be shown, and why.
    """

    prompts: list[Prompt]
    original_seconds: float | None
    notes: list[str]


def gallery(source: Source, group: FidelityGroup) -> Gallery:
    """The samples of a group: up to six settings of the front, spread over the cost, and the published ones.

    Files are read from the folder of the result file and nowhere else. What cannot be shown is left out, with a note.
    """
    settings = source.result["settings"]
    reference = group.reference
    if reference is None:
        return Gallery([], None, [])
    seconds = reference["seconds"] / group.images
    notes: list[str] = []
    originals: list[Picture] = []
    if reference["samples"] is None:
        notes.append("all samples: the images without caching were not kept")
    else:
        try:
            originals = read_strip(source, reference["samples"], group.images)
        except (OSError, ValueError) as error:
            notes.append(f"all samples, for want of the images without caching: {error}")
    prompts = [
        Prompt(settings["prompts"][number % len(settings["prompts"])], _seed(settings, number), original, [])
        for number, original in enumerate(originals)
    ]
    for cell in _chosen(group) if originals else ():
        if cell["samples"] is None:
            notes.append(f"{cell['label']}: its images were not kept")
            continue
        try:
            pictures = read_strip(source, cell["samples"], group.images)
            if len(pictures) != len(originals):
                raise ValueError(f"{cell['samples']!r} holds {len(pictures)} images, and not {len(originals)}")
        except (OSError, ValueError) as error:
            notes.append(f"{cell['label']}: {error}")
            continue
        for number, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
            prompt.samples.append(
                Sample(
                    cell["label"],
                    picture,
                    _difference(prompt.original, picture),
                    _value(cell["psnr"], number),
                    cell["mac_share"],
                    cell["seconds"] / group.images,
                )
            )
    return Gallery([prompt for prompt in prompts if prompt.samples], seconds, notes)


def _chosen(group: FidelityGroup) -> list[Mapping[str, Any]]:
    front = [cell for cell in group.front if cell["method"] == "DeepCache"]
    count = min(_AT_MOST, len(front))
    spread = [front[round(number * (len(front) - 1) / max(1, count - 1))]["label"] for number in range(count)]
    return [cell for cell in group.deepcache if cell["label"] in (*spread, *_FAMOUS)]


def _seed(settings: Mapping[str, Any], number: int) -> int:
    seeds, prompts = settings["seeds"], settings["prompts"]
    return int(seeds[number // len(prompts)]) + number % len(prompts)


def _value(metric: Mapping[str, Any] | None, number: int) -> float | None:
    values = metric["values"] if metric is not None else []
    return values[number] if number < len(values) else None


def read_strip(source: Source, name: str, images: int) -> list[Picture]:
    """The images of a strip.

    Raises:
        ValueError: the path leads out of the folder, or the file holds something else.
        OSError: it cannot be read.
    """
    folder = source.path.parent.resolve()
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f"the path {name!r} leads out of the folder of {source.name!r}, so it is not read")
    if not path.is_file():
        raise FileNotFoundError(f"the file {name!r} is not there")
    settings = source.result["settings"]
    size = (settings["width"], settings["height"])
    try:
        with warnings.catch_warnings():
            # Long strips have many pixels.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as strip:
                # Before anything is unpacked, so that no small file becomes a large image.
                count = _images_in(strip.size, size)
                if not 1 <= count <= images:
                    found = f"{strip.width}×{strip.height}"
                    raise ValueError(f"{name!r} is {found} pixels, which is no row of images of {size[0]}×{size[1]}")
                colours = strip.convert("RGB")
    # What Pillow says of damaged files names the folder, which is no business of those who read the page.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name!r} is damaged, or no PNG") from error
    width, height = size
    return [Picture(colours.crop((left, 0, left + width, height))) for left in range(0, count * width, width)]


def _images_in(strip: tuple[int, int], size: tuple[int, int]) -> int:
    """How many images of a size lie side by side in a strip; 0 where they do not fill it."""
    width, height = size
    return strip[0] // width if width > 0 and strip[0] % width == 0 and strip[1] == height else 0


def _difference(original: Picture, cached: Picture) -> Picture:
    difference = ImageChops.difference(original.image, cached.image)
    return Picture(difference.point([min(255, AMPLIFIED * value) for value in range(256)] * 3))
