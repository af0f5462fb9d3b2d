"""HTML of the page from its templates, and pictures within it."""

from __future__ import annotations

import base64
import json
from functools import cache
from importlib.resources import files
from io import BytesIO
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

__all__ = ["asset", "embedded", "embedded_json", "embedded_picture", "is_small", "render"]


def render(template: str, **values: Any) -> str:
    """A template of `DeepCache.app`, filled in; all text is escaped."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("DeepCache.app"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def asset(name: str) -> str:
    """The text of a file that the page is made of: a style sheet or a script."""
    return (files("DeepCache.app") / "assets" / name).read_text(encoding="utf-8")


def is_small(picture: Image.Image) -> bool:
    """Whether a picture is shown larger than it is, pixel by pixel."""
    return picture.width < 256


def embedded(png: bytes) -> str:
    """A PNG file as an address that holds it, so that no visitor's picture has an address on the server."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def embedded_picture(picture: Image.Image) -> str:
    """A picture as an address that holds it."""
    data = BytesIO()
    picture.save(data, format="PNG")
    return embedded(data.getvalue())


def embedded_json(value: Any) -> str:
    """A JSON file as an address that holds it."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "data:application/json;base64," + base64.b64encode(text.encode()).decode()
