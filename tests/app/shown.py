"""Reads images and tables from the page."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

from PIL import Image, ImageChops

__all__ = ["MILLISECONDS", "rows", "same", "shown"]

MILLISECONDS = 60_000
"""Timeout on a busy machine."""


def shown(page: Any, selector: str) -> Image.Image:
    """The image of an `img`, from its address."""
    kind, data = page.get_attribute(selector, "src").split(",")
    assert kind == "data:image/png;base64"
    return Image.open(BytesIO(base64.b64decode(data)))


def rows(page: Any, selector: str) -> list[list[str]]:
    """The text of the cells of a table."""
    found: list[list[str]] = page.eval_on_selector_all(
        f"{selector} tr", "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
    )
    return found


def same(image: Image.Image, other: Image.Image) -> bool:
    """Whether two images are identical."""
    return ImageChops.difference(image.convert("RGB"), other.convert("RGB")).getbbox() is None
