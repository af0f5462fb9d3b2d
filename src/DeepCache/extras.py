"""Checks that the packages of an extra are installed."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version

from DeepCache.errors import MissingExtraError

__all__ = ["require", "why_missing"]


def why_missing(extra: str) -> str:
    """Names the missing or outdated packages of an extra and how to install them; an empty string if none is.

    Example:
        >>> why_missing("cli")
        ''
    """
    try:
        requirements = requires("DeepCache") or []
    except PackageNotFoundError:  # DeepCache runs from a source folder.
        return ""
    lacking = []
    for requirement in requirements:
        # Requirements with a further marker, such as a Python version, do not match.
        wanted = re.match(rf"""([\w.-]+)>=([\d.]+)\s*;\s*extra == ['"]{extra}['"]""", requirement)
        if wanted:
            name, least = wanted.groups()
            try:
                found = version(name)
            except PackageNotFoundError:
                lacking.append(name)
            else:
                if _numbers(found) < _numbers(least):
                    lacking.append(f"{name} >= {least} (found {found})")
    return f"it needs {', '.join(lacking)}: pip install 'DeepCache[{extra}]'" if lacking else ""


def require(extra: str, what: str) -> None:
    """Checks that the packages of an extra are installed.

    Args:
        extra: the extra.
        what: what requires it, for the message.

    Raises:
        MissingExtraError: a package is missing or too old.
    """
    missing = why_missing(extra)
    if missing:
        raise MissingExtraError(f"{what} cannot be used here: {missing}")


def _numbers(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", re.split(r"[a-z+]", release)[0])]
