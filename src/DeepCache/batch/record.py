"""Records of rows: the lines of the manifest, and the metadata of the images."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = "pictures"
"""The name of the folder of the images in the output folder."""


@dataclass(frozen=True)
class BatchRecord:
    """The result of one row.

    Args:
        id: the row's id.
        row_id: the row's id in the prompt file; empty if it has none.
        prompt: the prompt.
        negative_prompt: the negative prompt.
        seed: the seed of the image; None if the row cannot be read.
        width: width of the image in pixels; None without an image.
        height: height of the image in pixels; None without an image.
        settings: the settings shared by all rows, as JSON.
        model: a hash of the model.
        path: path of the image in the output folder; empty without an image.
        sha256: SHA-256 of the image file in hexadecimal; empty without an image.
        bytes: size of the image file; 0 without an image.
        seconds: the image's share of the duration of the pipeline call; None without an image, or if the run was killed
            before it wrote the record.
        batch: rows in the pipeline call, including those that filled it up; None if `seconds` is None.
        full_steps: steps that ran the whole U-Net.
        shallow_steps: steps that ran only the layers above the skip branch.
        skipped_steps: steps that ran no layer of the U-Net.
        host: the machine that generated the image; empty if `seconds` is None.
        error: why the row failed; empty if it has an image.
    """

    id: str
    row_id: str = ""
    prompt: str = ""
    negative_prompt: str = ""
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    settings: str = ""
    model: str = ""
    path: str = ""
    sha256: str = ""
    bytes: int = 0
    seconds: float | None = None
    batch: int | None = None
    full_steps: int | None = None
    shallow_steps: int | None = None
    skipped_steps: int | None = None
    host: str = ""
    error: str = ""


def image_path(row_id: str) -> str:
    """The path of a row's image in the output folder, in one of 256 folders because large folders are slow.

    Example:
        >>> image_path("0123456789ab")
        'pictures/01/0123456789ab.png'
    """
    return f"{IMAGES}/{row_id[:2]}/{row_id}.png"


def encode_image(image: Image, record: BatchRecord, versions: dict[str, str]) -> bytes:
    """The PNG file of an image, whose metadata depend on its row, the settings and the versions alone."""
    from DeepCache.generation.metadata import with_notes

    names = ("id", "row_id", "prompt", "negative_prompt", "model", "seed", "settings")
    steps = {"full": record.full_steps, "shallow": record.shallow_steps, "skipped": record.skipped_steps}
    notes = {name: getattr(record, name) for name in names} | {"steps": steps, "versions": versions}
    file = io.BytesIO()
    image.save(file, format="PNG", **with_notes("PNG", notes))
    return file.getvalue()


def decode_record(data: bytes, row_id: str) -> BatchRecord | None:
    """The record in an image file; None if it is not a complete image of this row."""
    from PIL import Image

    # PIL accepts files without their last chunk.
    if not data.endswith(b"\0\0\0\0IEND\xaeB`\x82"):
        return None
    try:
        # Each of the two misses some damage.
        with Image.open(io.BytesIO(data)) as image:
            image.verify()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            notes: dict[Any, Any] = image.info
        steps = json.loads(notes["steps"])
        record = BatchRecord(
            **{name: notes[name] for name in ("id", "row_id", "prompt", "negative_prompt", "settings", "model")},
            seed=int(notes["seed"]),
            width=image.width,
            height=image.height,
            full_steps=steps["full"],
            shallow_steps=steps["shallow"],
            # Not in the images of earlier versions.
            skipped_steps=steps.get("skipped", 0),
        )
    # PIL raises a SyntaxError for some damage.
    except (OSError, SyntaxError, ValueError, KeyError, TypeError):
        return None
    return with_file(record, data) if record.id == row_id else None


def with_file(record: BatchRecord, data: bytes) -> BatchRecord:
    """The record with the path, the hash and the size of its image file."""
    digest = hashlib.sha256(data).hexdigest()
    return replace(record, path=image_path(record.id), sha256=digest, bytes=len(data))
