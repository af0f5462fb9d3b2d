"""The reference package, loaded by path under a private name: it has the import name of ours."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[2] / "build/reference/DeepCache/extension/deepcache.py"


@cache
def reference_helper_class() -> Any:
    """`DeepCacheSDHelper` of the reference package 0.1.1."""
    if not SOURCE.is_file():
        raise FileNotFoundError(f"the reference package is not at {SOURCE}; fetch it with `make test`")
    spec = importlib.util.spec_from_file_location("_deepcache_reference", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DeepCacheSDHelper
