"""What the page shows, taken out of it."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

from PIL import Image, ImageChops

__all__ = ["MILLISECONDS", "rows", "same", "shown"]

MILLISECONDS = 60_000
"""What a busy machine may take until something is shown."""


def shown(page: Any, selector: str) -> Image.Image:
    """The picture of an `img`, out of its address."""
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
    """Whether two pictures are the same to the last bit."""
    return ImageChops.difference(image.convert("RGB"), other.convert("RGB")).getbbox() is None
