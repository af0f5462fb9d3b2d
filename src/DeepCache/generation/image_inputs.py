"""Images that an image is made from: one to start from, a mask, one for a ControlNet."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from DeepCache.models.controlnet import check_controlnet, load_controlnet

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageInputs"]

# The latents, the mask and the latents of the masked image.
_INPAINTING_CHANNELS = 9


@dataclass(frozen=True)
class ImageInputs:
    """Images that an image is made from.

    Args:
        image (`Path`, *optional*):
            The image to start from.
        strength (`float`, *optional*):
            How much of it is generated again, above 0 and at most 1; the pipeline's own default by default.
        mask (`Path`, *optional*):
            White where the image is generated again, black where it stays.
        control_image (`Path`, *optional*):
            What a ControlNet looks at.
        controlnet (`str`, *optional*):
            The ControlNet: a folder that one of diffusers was saved to, or a repository of the hub as `owner/name`.

    Raises:
        ValueError: the strength is out of its range, or a strength or a mask is given without an image, or one of
            ControlNet and control image without the other.

    Example:
        >>> ImageInputs(mask=Path("mask.png"))
        Traceback (most recent call last):
        ValueError: mask is for an image to start from. Give --image too
    """

    image: Path | None = None
    strength: float | None = None
    mask: Path | None = None
    control_image: Path | None = None
    controlnet: str | None = None

    def __post_init__(self) -> None:
        if self.image is None:
            for name in ("strength", "mask"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is for an image to start from. Give --image too")
        if (self.controlnet is None) is not (self.control_image is None):
            raise ValueError("--controlnet and --control-image go together: give both")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ValueError(f"strength must be above 0 and at most 1, got {self.strength:g}")

    def __bool__(self) -> bool:
        return self.image is not None or self.control_image is not None

    def check(self) -> None:
        """Refuses files that are missing or are not images, before a model is loaded.

        Raises:
            FileNotFoundError, OSError: a file or the folder of the ControlNet is missing, or cannot be read.
            ValueError: a file is not an image.
        """
        check_controlnet(self.controlnet)
        for path in (self.image, self.mask, self.control_image):
            if path is not None:
                with _opened(path):
                    pass

    def pipeline(self, pipe: Any) -> Any:
        """The pipeline of diffusers for these images, with the components of another one.

        Raises:
            OSError: the ControlNet cannot be loaded.
            ValueError: diffusers has none for this model, the ControlNet is for another kind of model, or the model is
                for inpainting and there is no mask.
        """
        from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image

        kinds: dict[tuple[bool, bool], Any] = {
            (False, False): AutoPipelineForText2Image,
            (True, False): AutoPipelineForImage2Image,
            (True, True): AutoPipelineForInpainting,
        }
        unet = getattr(pipe, "unet", None)
        if self.mask is None and unet is not None and unet.config.in_channels == _INPAINTING_CHANNELS:
            raise ValueError(f"this {type(pipe).__name__} is for inpainting and needs a mask. Give --image and --mask")
        kind = kinds[self.image is not None, self.mask is not None]
        more = {} if self.controlnet is None else {"controlnet": load_controlnet(self.controlnet, pipe)}
        try:
            made = kind.from_pipe(pipe, **more)
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"diffusers has no such pipeline for a {type(pipe).__name__}: {reason}") from error
        made.set_progress_bar_config(disable=True)
        return made

    def arguments(self, pipe: Any, size: tuple[int, int] | None) -> dict[str, Any]:
        """What the pipeline is called with.

        Args:
            pipe: the pipeline.
            size: width and height in pixels; those of the image by default, as far as they are multiples of what the
                model takes.

        Raises:
            OSError: an image cannot be read.
        """
        parameters = signature(pipe.__call__).parameters
        found: dict[str, Any] = {}
        first = self.image or self.control_image
        assert first is not None
        pixels = size or _fitting(_read(first).size, math.lcm(8, getattr(pipe, "vae_scale_factor", 8)))
        if self.image is not None:
            found["image"] = _read(self.image).resize(pixels)
        if self.control_image is not None:
            found["control_image" if "control_image" in parameters else "image"] = _read(self.control_image).resize(
                pixels
            )
        if self.mask is not None:
            found["mask_image"] = _read(self.mask, "L").resize(pixels)
        if self.strength is not None:
            found["strength"] = self.strength
        if {"width", "height"} <= parameters.keys():
            found |= {"width": pixels[0], "height": pixels[1]}
        return found

    def notes(self) -> dict[str, Any]:
        """What an image's metadata says of it."""
        values = {name: getattr(self, name) for name in ("image", "mask", "control_image", "controlnet")}
        named = {name: str(value) for name, value in values.items() if value is not None}
        return named if self.strength is None else named | {"strength": self.strength}


def _read(path: Path, mode: str = "RGB") -> Image:
    from PIL import ImageOps

    with _opened(path) as image:
        return ImageOps.exif_transpose(image).convert(mode)


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no image {str(path)!r}. Check the path") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{str(path)!r} is not an image") from error
    except OSError as error:
        raise OSError(f"cannot read the image {str(path)!r}: {error.strerror or error}") from error


def _fitting(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    width, height = (max(multiple, side - side % multiple) for side in size)
    return width, height
