"""Metadata in images: text chunks of a PNG, EXIF data of other formats."""

from __future__ import annotations

import io
import json
import os
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

__all__ = ["read_notes", "read_settings", "with_notes"]

_DESCRIPTION = 0x010E  # ImageDescription of EXIF
_EXIF_TABLE, _USER_COMMENT = 0x8769, 0x9286


def with_notes(kind: str, notes: dict[str, Any]) -> dict[str, Any]:
    """The options of `Image.save` that write metadata: a PNG has a text chunk per note, with values other than text as
    JSON; the other formats have all of them as one JSON object."""
    if kind == "PNG":
        info = PngInfo()
        for key, value in notes.items():
            info.add_text(key, value if isinstance(value, str) else json.dumps(value))
        return {"pnginfo": info}
    exif = Image.Exif()
    exif[_DESCRIPTION] = json.dumps(notes)
    return {"exif": exif, "quality": 95}


def read_notes(source: str | os.PathLike[str] | bytes) -> dict[str, str]:
    """All text in the metadata of an image, by any program. The comment of the EXIF data is under `parameters`."""
    name = "" if isinstance(source, bytes) else f" {os.fspath(source)!r}"
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            notes = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
            exif = image.getexif()
            described, comment = exif.get(_DESCRIPTION), exif.get_ifd(_EXIF_TABLE).get(_USER_COMMENT)
    except UnidentifiedImageError as error:
        raise ValueError(f"cannot read the image{name}: it is not an image") from error
    except OSError as error:
        raise OSError(f"cannot read the image{name}: {error.strerror or error}") from error
    if isinstance(described, str) and described.startswith("{"):
        found = json.loads(described)
        notes |= {key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()}
    # The first eight bytes name the encoding.
    if isinstance(comment, bytes) and comment.startswith(b"UNICODE"):
        notes.setdefault("parameters", comment[8:].decode("utf-16-be", errors="replace"))
    return notes


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Prompt, seed and settings of an image that `deepcache generate` or `deepcache batch` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not an image by DeepCache.
    """
    notes = read_notes(path)
    if "settings" not in notes:
        raise ValueError(f"the metadata of {os.fspath(path)!r} has no settings of DeepCache")
    return {
        "prompt": notes.get("prompt", ""),
        "negative_prompt": notes.get("negative_prompt", ""),
        "seed": int(notes["seed"]),
        "settings": json.loads(notes["settings"]),
        **({"versions": json.loads(notes["versions"])} if "versions" in notes else {}),
        **({"weights": notes["model"]} if "model" in notes else {}),
    }
