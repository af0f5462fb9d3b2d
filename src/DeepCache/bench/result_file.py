"""Result files: JSON with the numbers and with everything needed to read and repeat them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from DeepCache.bench.ablation_cells import upgraded_ablation
from DeepCache.files import read_json_text, write_atomically

__all__ = [
    "ABLATION_FORMAT",
    "BENCHMARK_FORMAT",
    "OLDER_ABLATION_FORMAT",
    "load_result",
    "read_result",
    "resumed_result",
    "schema",
    "write_result",
]

BENCHMARK_FORMAT = "DeepCache benchmark 1"
"""The `format` of a benchmark's result file."""

ABLATION_FORMAT = "DeepCache ablation 2"
"""The `format` of an ablation's result file."""

OLDER_ABLATION_FORMAT = "DeepCache ablation 1"
"""The `format` of an ablation of DeepCache 0.2 and before, with one guidance scale; such files can be read."""

_SCHEMAS = {BENCHMARK_FORMAT: "benchmark-1", ABLATION_FORMAT: "ablation-2", OLDER_ABLATION_FORMAT: "ablation-1"}

# A run that resumes may differ in these from the one that was stopped.
_NOT_COMPARED = ("command", "date")


@cache
def schema(kind: str) -> Mapping[str, Any]:
    """The JSON Schema of result files of a format. Every key in it has a description.

    Example:
        >>> schema(BENCHMARK_FORMAT)["properties"]["cells"]["type"]
        'array'
    """
    path = files("DeepCache.bench") / "schemas" / f"{_SCHEMAS[kind]}.schema.json"
    loaded: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Writes a result file so that no reader sees half of it; a path that ends with `.gz` is compressed.

    Raises:
        OSError: the file cannot be written.
        ValueError: JSON has no such value, for example infinity.
    """
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # Without a time, so that equal results are equal files.
    write_atomically(path, gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text)


def read_result(path: Path) -> dict[str, Any]:
    """Reads a result file of `deepcache benchmark` or `deepcache ablate`, and checks it against its schema.

    A file of the older format is returned in the current one. Values that it lacks are computed from others, or null.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a result file, or a value in it is missing or wrong.
        ImportError: jsonschema is not installed.
    """
    return load_result(path)[0]


def load_result(path: Path) -> tuple[dict[str, Any], str]:
    """As `read_result`, with the text of the file."""
    result, text = _read(path)
    if result.get("format") not in _SCHEMAS:
        raise ValueError(
            f"{str(path)!r} is not a result of `deepcache benchmark` or `deepcache ablate`: its 'format' is "
            f"{result.get('format')!r}, and {', '.join(map(repr, _SCHEMAS))} are known"
        )
    try:
        from jsonschema import Draft202012Validator
    except ImportError as error:
        raise ImportError("checking result files requires jsonschema: pip install 'DeepCache[report]'") from error

    validator = Draft202012Validator(schema(result["format"]))
    for wrong in sorted(validator.iter_errors(result), key=lambda error: list(map(str, error.absolute_path)))[:1]:
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in wrong.absolute_path)
        raise ValueError(f"{str(path)!r} is damaged at {place.lstrip('.') or 'its top'}: {wrong.message[:200]}")
    if result["format"] == OLDER_ABLATION_FORMAT:
        try:
            result = upgraded_ablation(result) | {"format": ABLATION_FORMAT}
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{str(path)!r} is damaged: {error}") from error
    return result, text


def resumed_result(path: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """The result in a file if it belongs to the run that starts as `fresh`, or `fresh` without a file.

    Raises:
        ValueError: the file belongs to a run with other settings or versions or on another machine, or is damaged.
    """
    if not path.exists():
        return fresh
    found, _ = _read(path)
    # As JSON has them, so that tuples equal lists.
    expected = json.loads(json.dumps(fresh))
    for key, value in expected.items():
        if isinstance(value, list):
            if not isinstance(found.get(key), list) or len(found[key]) != len(value):
                raise ValueError(f"{str(path)!r} is damaged: {key!r} must be a list of {len(value)}; delete the file")
        elif key not in _NOT_COMPARED and found.get(key) != value:
            raise ValueError(
                f"{str(path)!r} is of another run: {_difference(key, found.get(key), value)}; delete it, or give "
                "another --output"
            )
    return found


def _difference(key: str, found: Any, expected: Any) -> str:
    """The first place where two values differ."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for name in {**expected, **found}:
            if found.get(name) != expected.get(name):
                return _difference(f"{key}.{name}", found.get(name), expected.get(name))
    texts = [json.dumps(value, ensure_ascii=False) for value in (found, expected)]
    there, now = (text if len(text) <= 80 else text[:77] + "…" for text in texts)
    return f"{key} is {there} there and {now} now"


def _read(path: Path) -> tuple[dict[str, Any], str]:
    not_in_json: list[str] = []
    text = read_json_text(path, "result")
    try:
        result = json.loads(text, parse_constant=not_in_json.append)
    except RecursionError:
        raise ValueError(f"{str(path)!r} is damaged: its values are nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}") from error
    if not_in_json:
        raise ValueError(f"{str(path)!r} contains {not_in_json[0]}, a number that JSON does not have")
    if not isinstance(result, dict):
        raise ValueError(f"{str(path)!r} is not a result file: it holds no JSON object")
    return result, text
