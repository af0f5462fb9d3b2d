"""The folder that images are saved to."""

from __future__ import annotations

import os
import re
import tempfile
import textwrap
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from DeepCache.files import atomic_file
from DeepCache.generation.metadata import with_notes

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FORMATS", "OutputFolder"]

FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
"""Image formats by file name extension."""

_SLUG_LENGTH = 40


class OutputFolder:
    """A folder to save images to.

    Images are numbered from the highest number in the folder, so existing files are never overwritten:
    `0001-a-red-circle-seed0.png`, then `0002-…`. A file appears once it is complete.

    Args:
        path: the folder, which is created if it does not exist; or a file with the extension of an image format
            (`.png`, `.webp`, `.jpg`), which is the name of the first image: the following ones are `name-2` and so on.

    Raises:
        ValueError: the path is empty.
        OSError: the folder cannot be created or written to.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not str(path):
            raise ValueError("the output folder must have a name, got ''. Use '.' for the current folder")
        self.path, self._name, self._suffix = Path(path).expanduser(), "", ".png"
        if self.path.suffix.lower() in FORMATS and not self.path.is_dir():
            self._name, self._suffix = self.path.stem, self.path.suffix
            self.path = self.path.parent
        self._paths: list[Path] = []
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise OSError(f"cannot write to the folder {str(path)!r}: {error.strerror}") from error

    @property
    def written(self) -> list[Path]:
        """The files saved so far, including one that was saved right before an interruption."""
        return [path for path in self._paths if path.exists()]

    def new_stem(self, prompt: str, seed: int) -> str:
        """The name of the next image, without its extension."""
        if self._name:
            stems = (self._name if number == 1 else f"{self._name}-{number}" for number in count(1))
            return next(stem for stem in stems if not (self.path / f"{stem}{self._suffix}").exists())
        numbers = (re.match(r"(\d{4,})-", entry.name) for entry in self.path.iterdir())
        number = max((int(match[1]) for match in numbers if match), default=0) + 1
        words = textwrap.shorten(re.sub(r"[\W_]+", " ", prompt.lower()), _SLUG_LENGTH, placeholder="")
        return "-".join((f"{number:04d}", *words.split(), f"seed{seed}"))

    def save(self, image: Image, stem: str, notes: dict[str, Any]) -> Path:
        """Saves an image with its metadata: text chunks of a PNG, with values other than text as JSON; one JSON object
        in the EXIF description of the other formats."""
        path, kind = self.path / f"{stem}{self._suffix}", FORMATS[self._suffix.lower()]
        # Before the file appears: an interruption in between must not lose it.
        self._paths.append(path)
        try:
            with atomic_file(path) as file:
                image.save(file, format=kind, **with_notes(kind, notes))
        except OSError as error:
            raise OSError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
        return path
