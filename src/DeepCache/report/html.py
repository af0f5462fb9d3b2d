"""HTML from templates, and data inside it. The report and the app use the same environment."""

from __future__ import annotations

import base64
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

from DeepCache.report import numerals

if TYPE_CHECKING:
    from jinja2 import Environment
    from PIL import Image

__all__ = ["data_uri", "image_uri", "render"]

_FILTERS = ("confidence", "decibels", "gain", "per_cent", "seconds", "times")


def render(template: str, package: str = "DeepCache.report", **values: Any) -> str:
    """A template of a package, filled in. It can include the templates of the report; all text is escaped.

    Raises:
        ImportError: jinja2 is not installed.
    """
    return _environment(package).get_template(template).render(**values)


@cache
def _environment(package: str) -> Environment:
    try:
        from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ImportError("writing a report requires jinja2: pip install 'DeepCache[report]'") from error

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("DeepCache.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: numerals.or_dash(getattr(numerals, name)) for name in _FILTERS}
    return environment


def data_uri(data: bytes, kind: str) -> str:
    """An address that holds the data, such as of the kind `image/png`."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_uri(image: Image.Image, kind: str = "png", **options: Any) -> str:
    """An address that holds an image; `options` are those of `Image.save`."""
    buffer = BytesIO()
    image.save(buffer, kind.upper(), **options)
    return data_uri(buffer.getvalue(), f"image/{kind}")
