"""Images that a generation starts from: an initial image, a mask, the image of a ControlNet."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from DeepCache.models.adapters import check_controlnet, load_controlnet

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageInputs"]

# The latents, the mask and the latents of the masked image.
_INPAINTING_CHANNELS = 9


@dataclass(frozen=True)
class ImageInputs:
    """Images that a generation starts from.

    Args:
        image (`Path`, *optional*):
            The initial image.
        strength (`float`, *optional*):
            How much of it is regenerated, above 0 and at most 1; by default that of the pipeline.
        mask (`Path`, *optional*):
            White where the image is regenerated, black where it is kept.
        control_image (`Path`, *optional*):
            The image of the ControlNet.
        controlnet (`str`, *optional*):
            The ControlNet: a folder in the format of diffusers, or a repository of the hub as `owner/name`.

    Raises:
        ValueError: the strength is out of range, a strength or a mask has no image, or a ControlNet no control image or
            the reverse.

    Example:
        >>> ImageInputs(mask=Path("mask.png"))
        Traceback (most recent call last):
        ValueError: mask requires an initial image. Give --image too
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
                    raise ValueError(f"{name} requires an initial image. Give --image too")
        if (self.controlnet is None) is not (self.control_image is None):
            raise ValueError("--controlnet and --control-image require each other. Give both")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ValueError(f"strength must be above 0 and at most 1, got {self.strength:g}")

    def __bool__(self) -> bool:
        return self.image is not None or self.control_image is not None

    def check(self) -> None:
        """Checks that the files exist and are images, before a model is loaded.

        Raises:
            OSError, ValueError: a file cannot be read, or is not an image.
        """
        check_controlnet(self.controlnet)
        for path in (self.image, self.mask, self.control_image):
            if path is not None:
                with _opened(path):
                    pass

    def pipeline(self, pipe: Any) -> Any:
        """The pipeline of diffusers for these images, with the components of another pipeline.

        Raises:
            OSError: the ControlNet cannot be loaded.
            ValueError: diffusers has no such pipeline, the ControlNet does not fit, or a mask is missing.
        """
        from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image

        unet = getattr(pipe, "unet", None)
        if self.mask is None and unet is not None and unet.config.in_channels == _INPAINTING_CHANNELS:
            raise ValueError(f"this {type(pipe).__name__} is for inpainting and needs a mask. Give --image and --mask")
        kind: Any = AutoPipelineForText2Image
        if self.image is not None:
            kind = AutoPipelineForImage2Image if self.mask is None else AutoPipelineForInpainting
        more = {} if self.controlnet is None else {"controlnet": load_controlnet(self.controlnet, pipe)}
        try:
            made = kind.from_pipe(pipe, **more)
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"diffusers has no such pipeline for a {type(pipe).__name__}: {reason}") from error
        made.set_progress_bar_config(disable=True)
        return made

    def arguments(self, pipe: Any, size: tuple[int, int] | None) -> dict[str, Any]:
        """The keyword arguments of the pipeline call. The default size is that of the image, rounded down to multiples
        that the model supports."""
        parameters = signature(pipe.__call__).parameters
        found: dict[str, Any] = {}
        first = self.image or self.control_image
        assert first is not None
        if size is None:
            multiple = math.lcm(8, getattr(pipe, "vae_scale_factor", 8))
            width, height = (max(multiple, side - side % multiple) for side in _read(first).size)
            size = width, height
        if self.image is not None:
            found["image"] = _read(self.image).resize(size)
        if self.control_image is not None:
            name = "control_image" if "control_image" in parameters else "image"
            found[name] = _read(self.control_image).resize(size)
        if self.mask is not None:
            found["mask_image"] = _read(self.mask, "L").resize(size)
        if self.strength is not None:
            found["strength"] = self.strength
        if {"width", "height"} <= parameters.keys():
            found["width"], found["height"] = size
        return found

    def notes(self) -> dict[str, Any]:
        """The entries of an image's metadata."""
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
