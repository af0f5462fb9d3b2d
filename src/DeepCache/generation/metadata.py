"""The notes in an image: text chunks of a PNG, EXIF data of other formats."""

from __future__ import annotations

import json
import os
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

__all__ = ["read_notes", "read_settings", "with_notes"]

_DESCRIPTION = 0x010E  # ImageDescription of EXIF
_EXIF_TABLE, _USER_COMMENT = 0x8769, 0x9286


def with_notes(kind: str, notes: dict[str, Any]) -> dict[str, Any]:
    """The options that an image is saved with.

    Args:
        kind: the format.
        notes: what to note. In a PNG, values other than text become JSON; in other formats all of it does.
    """
    if kind == "PNG":
        info = PngInfo()
        for key, value in notes.items():
            info.add_text(key, value if isinstance(value, str) else json.dumps(value))
        return {"pnginfo": info}
    exif = Image.Exif()
    exif[_DESCRIPTION] = json.dumps(notes)
    return {"exif": exif, "quality": 95}


def read_notes(path: str | os.PathLike[str]) -> dict[str, str]:
    """All notes in an image, whoever wrote it. The comment of the EXIF data is under `parameters`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not an image.
    """
    name = os.fspath(path)
    try:
        with Image.open(path) as image:
            notes = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
            exif = image.getexif()
            described, comment = exif.get(_DESCRIPTION), exif.get_ifd(_EXIF_TABLE).get(_USER_COMMENT)
    except UnidentifiedImageError as error:
        raise ValueError(f"cannot read the image {name!r}: it is not an image") from error
    except OSError as error:
        raise OSError(f"cannot read the image {name!r}: {error.strerror or error}") from error
    if isinstance(described, str) and described.startswith("{"):
        found = json.loads(described)
        notes |= {key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()}
    # The first eight bytes name the encoding.
    if isinstance(comment, bytes) and comment.startswith(b"UNICODE"):
        notes.setdefault("parameters", comment[8:].decode("utf-16-be", errors="replace"))
    return notes


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The notes in an image that `deepcache generate` or `batch` wrote: prompt, seed and settings.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not an image that DeepCache wrote.
    """
    notes = read_notes(path)
    if "settings" not in notes:
        raise ValueError(f"{os.fspath(path)!r} holds no settings of DeepCache")
    return {
        "prompt": notes.get("prompt", ""),
        "negative_prompt": notes.get("negative_prompt", ""),
        "seed": int(notes["seed"]),
        "settings": json.loads(notes["settings"]),
        **({"versions": json.loads(notes["versions"])} if "versions" in notes else {}),
        **({"weights": notes["model"]} if "model" in notes else {}),
    }
