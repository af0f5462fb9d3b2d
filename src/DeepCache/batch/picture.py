"""A picture as the bytes of a PNG file that tells what made it, and back."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from DeepCache.batch.record import BatchRecord

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FOLDER", "filed", "picture_bytes", "picture_path", "picture_record"]

FOLDER = "pictures"
"""Where the pictures are in the folder of a batch."""


# The last chunk of every PNG file, which PIL can do without.
_END = b"\0\0\0\0IEND\xaeB`\x82"


def picture_path(row_id: str) -> str:
    """Where the picture of a row is, from the folder of the batch: in one of 256 folders, since file systems are slow
    with many files in one.

    Example:
        >>> picture_path("0123456789ab")
        'pictures/01/0123456789ab.png'
    """
    return f"{FOLDER}/{row_id[:2]}/{row_id}.png"


def picture_bytes(image: Image, record: BatchRecord, versions: dict[str, str]) -> bytes:
    """A PNG file with the picture and what it was made of, always the same one for the same picture.

    Args:
        image: the picture.
        record: what became of the row, without what there is to say of the file. Of the run that drew it nothing is
            noted, so that whoever draws it writes the same bytes.
        versions: of the packages that drew it.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name in ("id", "row_id", "prompt", "negative_prompt", "model"):
        info.add_text(name, getattr(record, name))
    info.add_text("seed", str(record.seed))
    # As `deepcache generate` notes them, so that `read_settings` reads both.
    info.add_text("settings", record.settings)
    kinds = {"full": record.full_steps, "shallow": record.shallow_steps, "skipped": record.skipped_steps}
    info.add_text("steps", json.dumps(kinds))
    info.add_text("versions", json.dumps(versions))
    file = io.BytesIO()
    image.save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def picture_record(data: bytes, row_id: str) -> BatchRecord | None:
    """What a picture's file tells of itself; None where it is no whole picture of this row."""
    from PIL import Image, UnidentifiedImageError

    if not data.endswith(_END):
        return None
    try:
        # Loading alone lets some broken bytes pass.
        with Image.open(io.BytesIO(data)) as image:
            image.verify()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            notes: dict[Any, Any] = image.info
        if notes.get("id") != row_id:
            return None
        steps = json.loads(notes["steps"])
        record = BatchRecord(
            id=row_id,
            row_id=notes["row_id"],
            prompt=notes["prompt"],
            negative_prompt=notes["negative_prompt"],
            seed=int(notes["seed"]),
            width=image.width,
            height=image.height,
            settings=notes["settings"],
            model=notes["model"],
            full_steps=steps["full"],
            shallow_steps=steps["shallow"],
            # Earlier versions skipped none.
            skipped_steps=steps.get("skipped", 0),
        )
    # What can be wrong with a broken file is not all an OSError: PIL raises SyntaxError too.
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, KeyError, TypeError):
        return None
    return filed(record, data)


def filed(record: BatchRecord, data: bytes) -> BatchRecord:
    """The record with what there is to say of the picture's file."""
    digest = hashlib.sha256(data).hexdigest()
    return replace(record, path=picture_path(record.id), sha256=digest, bytes=len(data))
