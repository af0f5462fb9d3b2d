"""Prompts from COCO's captions: the first caption of every image."""

from __future__ import annotations

from collections.abc import Iterator
from json import JSONDecodeError
from typing import Any, TextIO

from DeepCache.prompts.rows import Row, check_text, shown
from DeepCache.prompts.strict_json import parse_json

__all__ = ["COCO_EXPECTED", "coco_rows"]

COCO_EXPECTED = (
    "a .json file must be COCO's captions, such as captions_val2017.json: an object with the lists 'images' and "
    "'annotations'; other prompts go into a .jsonl file, one JSON string or object a line"
)


def coco_rows(text: TextIO) -> Iterator[Row]:
    """One row for each image that has a caption, in the order of the image ids.

    Of an image's captions it is the one with the lowest annotation id, on one line and with single blanks.

    JSON has no end before its last character, and the captions of an image may stand far apart, so that the whole
    file is held in memory.

    Raises:
        ValueError: the text is no JSON or not what COCO's captions look like; an id comes twice, an annotation is of
            an image that is not listed, or a caption is empty.
    """
    try:
        found = parse_json(text.read())
    except JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error.msg} (line {error.lineno}, character {error.colno})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{COCO_EXPECTED}; got {shown(found)}")
    images: set[int] = set()
    for place, image in _objects(found, "images"):
        _add(images, _whole_number(place, image, "id"), f"{place}: the image id")
    annotations: set[int] = set()
    captions: list[tuple[int, int, str]] = []
    for place, annotation in _objects(found, "annotations"):
        number, image_id = (_whole_number(place, annotation, key) for key in ("id", "image_id"))
        _add(annotations, number, f"{place}: the annotation id")
        place = f"annotation {shown(number)}"
        if image_id not in images:
            raise ValueError(f"{place} has the image_id {shown(image_id)}, which is not among the 'images'")
        if "caption" not in annotation:
            raise ValueError(f"{place} has no 'caption'; {COCO_EXPECTED}")
        caption = check_text(place, "caption", annotation["caption"])
        captions.append((image_id, number, " ".join(caption.split())))
    captions.sort()
    previous: int | None = None
    for image_id, number, caption in captions:
        if image_id != previous:
            yield Row(f"annotation {shown(number)}", {"caption": caption, "id": image_id})
        previous = image_id


def _objects(found: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if key not in found:
        raise ValueError(f"it has no {key!r}; {COCO_EXPECTED}")
    if not isinstance(found[key], list):
        raise ValueError(f"{key!r} must be a list, got {shown(found[key])}")
    for index, item in enumerate(found[key]):
        place = f"{key}[{index}]"
        if not isinstance(item, dict):
            raise ValueError(f"{place} must be an object, got {shown(item)}")
        yield place, item


def _whole_number(place: str, item: dict[str, Any], key: str) -> int:
    if key not in item:
        raise ValueError(f"{place} has no {key!r}")
    value = item[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{place}: the {key} must be a whole number, got {shown(value)}")
    return value


def _add(known: set[int], number: int, what: str) -> None:
    if number in known:
        raise ValueError(f"{what} {shown(number)} comes twice")
    known.add(number)
