"""Says why a pipeline cannot be loaded, in other words than those of the libraries that load it."""

from __future__ import annotations

import json
import re
from pathlib import Path

__all__ = ["damage", "why_not_loaded"]

_ABSENT = re.compile(r"no file named (?P<name>\S+)(?: or \S+)* found in directory (?P<folder>.+?)\.?$", re.MULTILINE)
_AGAIN = "Download or save the model again."
_MOST_NAMES = 4


def why_not_loaded(root: Path | None, error: Exception) -> str:
    """What is wrong with a pipeline's files, and what to do.

    Args:
        root: the folder of the pipeline, where it is known.
        error: what the library raised.
    """
    absent = _ABSENT.search(str(error))
    if absent is not None:
        return _absent(Path(absent["folder"]), absent["name"])
    for path in sorted(root.rglob("*")) if root is not None else ():
        reason = damage(path)
        if reason:
            return f"{str(path)!r} is damaged ({reason}). {_AGAIN}"
    cause: BaseException = error
    while (further := cause.__cause__ or cause.__context__) is not None and not str(cause).strip():
        cause = further
    return f"{' '.join(str(cause).split()) or type(cause).__name__}"


def _absent(folder: Path, name: str) -> str:
    if name.endswith(".json"):
        return f"the folder {str(folder)!r} has no {name}. {_AGAIN}"
    stem = name.partition(".")[0]
    there = sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".bin"))
    found = f", only {', '.join(there[:_MOST_NAMES])}" if there else ""
    fix = "Rename them, or save the model without a variant." if there else _AGAIN
    return f"the folder {str(folder)!r} has no weights ({stem}.safetensors or {stem}.bin){found}. {fix}"


def damage(path: Path) -> str:
    """Why a file cannot be read; empty where it can, or where nothing is known of its kind."""
    if path.suffix == ".safetensors" and path.is_file():
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            return " ".join(str(error).split())
    if path.suffix == ".json" and path.is_file():
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            return f"it is not JSON: {error}"
    return ""
