"""Result files: JSON with the numbers and with all that is needed to read and repeat them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from DeepCache.bench.older_ablation import OLDER_ABLATION_FORMAT, upgraded_ablation
from DeepCache.files import read_json_text, write_atomically

__all__ = [
    "ABLATION_FORMAT",
    "BENCHMARK_FORMAT",
    "load_result",
    "read_result",
    "resumed_result",
    "schema",
    "write_result",
]

BENCHMARK_FORMAT = "DeepCache benchmark 1"
"""The `format` in the result file of a benchmark."""

ABLATION_FORMAT = "DeepCache ablation 2"
"""The `format` in the result file of an ablation. Files of format 1, without guidance scales, can be read as well."""

_SCHEMAS = {BENCHMARK_FORMAT: "benchmark-1", ABLATION_FORMAT: "ablation-2", OLDER_ABLATION_FORMAT: "ablation-1"}

# In these a run that goes on may differ from the one that was stopped.
_NOT_COMPARED = ("command", "date")


@cache
def schema(kind: str) -> Mapping[str, Any]:
    """The JSON Schema of result files of a format, `BENCHMARK_FORMAT` or `ABLATION_FORMAT`; every key in it has a
    description.

    Example:
        >>> schema(BENCHMARK_FORMAT)["properties"]["cells"]["type"]
        'array'
    """
    path = files("DeepCache.bench") / "schemas" / f"{_SCHEMAS[kind]}.schema.json"
    loaded: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Writes a result file so that a reader never sees half of one.

    Raises:
        OSError: it cannot be written.
        ValueError: a value is none that JSON has, such as infinity.
    """
    write_atomically(path, json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_result(path: Path) -> dict[str, Any]:
    """Reads a result file of `deepcache benchmark` or `deepcache ablate`, and checks it against its schema.

    A file of an older format is returned as one of the current format would be, with what the older one did not have
    computed from its values, or null.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, or a value in it is missing or wrong.
        ImportError: jsonschema is not installed.
    """
    result, _ = load_result(path)
    return result


def load_result(path: Path) -> tuple[dict[str, Any], str]:
    """As `read_result`, with the text of the file.

    Raises:
        OSError, ValueError, ImportError: as `read_result`.
    """
    result, text = _read(path)
    if result.get("format") not in _SCHEMAS:
        raise ValueError(
            f"{str(path)!r} is no result of `deepcache benchmark` or `deepcache ablate`: its 'format' is "
            f"{result.get('format')!r}, and {', '.join(map(repr, _SCHEMAS))} are known"
        )
    try:
        from jsonschema import Draft202012Validator
    except ImportError as error:
        raise ImportError("checking result files takes jsonschema: pip install 'DeepCache[report]'") from error

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
    """The result file as it is where it is of the run that `fresh` begins, or `fresh` where there is none.

    Args:
        path: the result file.
        fresh: a result as it is before anything is measured.

    Raises:
        ValueError: the file is of another run: of other settings, versions, or another machine. Or it is damaged.
    """
    if not path.exists():
        return fresh
    found, _ = _read(path)
    keys = [key for key in fresh if key not in _NOT_COMPARED and not isinstance(fresh[key], list)]
    # As JSON has them, so that tuples and lists are alike.
    wanted = json.loads(json.dumps(fresh))
    different = [key for key in keys if found.get(key) != wanted[key]]
    if different:
        key = different[0]
        raise ValueError(
            f"{str(path)!r} is of another run: {_difference(key, found.get(key), wanted[key])}; delete it, or give "
            "another --output"
        )
    for key in (key for key, value in fresh.items() if isinstance(value, list)):
        if not isinstance(found.get(key), list) or len(found[key]) != len(fresh[key]):
            raise ValueError(f"{str(path)!r} is damaged: {key!r} must be a list of {len(fresh[key])}; delete the file")
    return found


def _difference(key: str, found: Any, wanted: Any) -> str:
    """The first place where two values differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in {**wanted, **found}:
            if found.get(name) != wanted.get(name):
                return _difference(f"{key}.{name}", found.get(name), wanted.get(name))
    return f"{key} is {_short(found)} there and {_short(wanted)} now"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "…"


def _read(path: Path) -> tuple[dict[str, Any], str]:
    not_in_json: list[str] = []
    text = read_json_text(path, "result")
    try:
        result = json.loads(text, parse_constant=not_in_json.append)
    except RecursionError:
        raise ValueError(f"{str(path)!r} is damaged: its values are nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no JSON: {error}") from error
    if not_in_json:
        raise ValueError(f"{str(path)!r} holds {not_in_json[0]}, a number that JSON does not have")
    if not isinstance(result, dict):
        raise ValueError(f"{str(path)!r} is no result file: it holds no JSON object")
    return result, text
