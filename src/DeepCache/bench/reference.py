"""The reference package, loaded from a file and never installed: it has the same import name as this package."""

from __future__ import annotations

from functools import cache
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

__all__ = ["reference_helper_class"]

_FETCH = "pip download DeepCache==0.1.1 --no-deps gets it"


@cache
def reference_helper_class(path: Path) -> Any:
    """`DeepCacheSDHelper` of the reference package 0.1.1.

    Args:
        path: its wheel, or the folder that it is unpacked to.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: it does not hold the reference package.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no reference package at {str(path)!r}; {_FETCH}")
    # Python imports from a wheel, which is a zip file, as from a folder.
    spec = PathFinder.find_spec("deepcache", [str(path / "DeepCache" / "extension")])
    if spec is None or spec.loader is None:
        raise ValueError(
            f"{str(path)!r} does not hold the reference package (DeepCache/extension/deepcache.py); {_FETCH}"
        )
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DeepCacheSDHelper
