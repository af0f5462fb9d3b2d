"""The reference package that `make test` downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from DeepCache.bench import reference

FOLDER = Path(__file__).resolve().parents[2] / "build/reference"


def reference_helper_class() -> Any:
    """`DeepCacheSDHelper` of the reference package 0.1.1."""
    return reference.reference_helper_class(FOLDER)
