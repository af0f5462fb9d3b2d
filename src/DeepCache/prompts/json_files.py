"""Prompts in JSON Lines and in COCO's caption files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from DeepCache.prompts.rows import Row, check_text
from DeepCache.text import shown

COCO_EXPECTED = (
    "a .json file must contain COCO captions, such as captions_val2017.json: an object with the lists 'images' and "
    "'annotations'. Write other prompts to a .jsonl file, one JSON string or object per line"
)


def json_line_rows(lines: Iterable[str]) -> Iterator[Row]:
    """One row per line that is not blank; a line that cannot be read is a row with an error."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = f"line {number}"
            try:
                row = Row(place, _line_values(place, line.removesuffix("\n")))
            except ValueError as error:
                row = Row(place, {}, str(error))
            yield row


def coco_rows(text: TextIO) -> Iterator[Row]:
    """The caption with the lowest id of each image, in the order of the image ids, with normalized whitespace."""
    try:
        found = _parsed(text.read())
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} (line {error.lineno}, character {error.colno})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{COCO_EXPECTED}; got {shown(found)}")
    images, annotations = _by_id(found, "images"), _by_id(found, "annotations")
    rows: dict[int, Row] = {}
    for number, annotation in sorted(annotations.items()):
        place = f"annotation {shown(number)}"
        image_id = _whole_number(place, annotation, "image_id")
        if image_id not in images:
            raise ValueError(f"{place} has the image_id {shown(image_id)}, which is not among the 'images'")
        if "caption" not in annotation:
            raise ValueError(f"{place} has no 'caption'; {COCO_EXPECTED}")
        caption = check_text(place, "caption", annotation["caption"])
        rows.setdefault(image_id, Row(place, {"caption": " ".join(caption.split()), "id": image_id}))
    for image_id in sorted(rows):
        yield rows[image_id]


def _line_values(place: str, line: str) -> dict[str, object]:
    try:
        found = _parsed(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON: {error.msg} (character {error.colno})") from error
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    if isinstance(found, str):
        return {"prompt": found}
    if not isinstance(found, dict):
        raise ValueError(f"{place} must be a JSON object or a JSON string, got {shown(found)}")
    values: dict[str, object] = {}
    for key, value in found.items():
        name = key.strip().lower()
        if name in values:
            raise ValueError(f"{place} has the key {shown(name)} twice")
        values[name] = value
    return values


def _by_id(found: dict[str, Any], key: str) -> dict[int, dict[str, Any]]:
    """The objects of one of COCO's lists by their ids."""
    if key not in found:
        raise ValueError(f"it has no {key!r}; {COCO_EXPECTED}")
    if not isinstance(found[key], list):
        raise ValueError(f"{key!r} must be a list, got {shown(found[key])}")
    objects: dict[int, dict[str, Any]] = {}
    for index, item in enumerate(found[key]):
        place = f"{key}[{index}]"
        if not isinstance(item, dict):
            raise ValueError(f"{place} must be an object, got {shown(item)}")
        number = _whole_number(place, item, "id")
        if number in objects:
            raise ValueError(f"{place}: the id {shown(number)} occurs twice")
        objects[number] = item
    return objects


def _whole_number(place: str, item: dict[str, Any], key: str) -> int:
    if key not in item:
        raise ValueError(f"{place} has no {key!r}")
    value = item[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{place}: the {key} must be a whole number, got {shown(value)}")
    return value


def _parsed(text: str) -> Any:
    """The value of a JSON text; duplicate keys, very long numbers and deep nesting raise a `ValueError` too."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except RecursionError:
        # Without the cause, whose traceback is as long as the nesting is deep.
        raise ValueError("its values are nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"an object has the key {shown(twice)} twice")
    return values


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError as error:
        raise ValueError(f"a number of {len(digits)} digits is too long") from error
