"""The folder that images are written to: their names, what is noted in them, and no half files."""

from __future__ import annotations

import os
import re
import tempfile
import textwrap
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from DeepCache.generation.metadata import with_notes

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FORMATS", "OutputFolder"]

FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
"""Formats of images by the ending of a file."""

_SLUG_LENGTH = 40


class OutputFolder:
    """A folder to write images to.

    Images are numbered on from the highest number there, so nothing is ever overwritten:
    `0001-a-red-circle-seed0.png`, then `0002-…`. A file appears under its name once it is whole.

    Args:
        path: the folder, which is made where it does not exist; or a file whose ending says the format of the images
            (`.png`, `.webp`, `.jpg`): the first image gets this name, further ones `name-2` and so on.

    Raises:
        ValueError: the path is empty.
        OSError: the folder cannot be made or written to.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self._name, self._suffix = Path(path).expanduser(), "", ".png"
        if self.path.suffix.lower() in FORMATS and not self.path.is_dir():
            self._name, self._suffix = self.path.stem, self.path.suffix
            self.path = self.path.parent
        self._paths: list[Path] = []
        if not str(path):
            raise ValueError("the folder to write to must have a name, got ''; use '.' for the current folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise OSError(f"cannot write to the folder {str(path)!r}: {error.strerror}") from error

    @property
    def written(self) -> list[Path]:
        """The files written so far, also where the program was interrupted right after one."""
        return [path for path in self._paths if path.exists()]

    def new_stem(self, prompt: str, seed: int) -> str:
        """The name, without its ending, of the next image."""
        if self._name:
            further = (f"{self._name}-{number}" for number in count(2))
            return next(stem for stem in (self._name, *islice(further, 10**6)) if not self._taken(stem))
        numbers = (re.match(r"(\d{4,})-", entry.name) for entry in self.path.iterdir())
        number = max((int(match[1]) for match in numbers if match), default=0) + 1
        words = textwrap.shorten(re.sub(r"[\W_]+", " ", prompt.lower()), _SLUG_LENGTH, placeholder="")
        return "-".join((f"{number:04d}", *words.split(), f"seed{seed}"))

    def _taken(self, stem: str) -> bool:
        return (self.path / f"{stem}{self._suffix}").exists()

    def save(self, image: Image, stem: str, notes: dict[str, Any]) -> Path:
        """Writes an image with notes: text chunks of a PNG, whose values other than text are JSON; of other formats a
        description in the EXIF data, as one JSON object."""
        path, kind = self.path / f"{stem}{self._suffix}", FORMATS[self._suffix.lower()]
        partial = self.path / f".{stem}.partial"
        try:
            image.save(partial, format=kind, **with_notes(kind, notes))
            # Before it is there, so that none is forgotten.
            self._paths.append(path)
            partial.replace(path)
        except OSError as error:
            raise OSError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
        finally:
            partial.unlink(missing_ok=True)
        return path
