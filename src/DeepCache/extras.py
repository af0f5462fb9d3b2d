"""What an extra of the package brings, and what of it is missing here."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version

from DeepCache.errors import MissingExtraError

__all__ = ["require", "why_missing"]


def why_missing(extra: str) -> str:
    """What is missing of an extra, or too old, with what to install; an empty string where all is there.

    Args:
        extra: an extra of the package, such as `cli`.

    Example:
        >>> why_missing("cli")
        ''
    """
    try:
        requirements = requires("DeepCache") or []
    except PackageNotFoundError:  # It runs from a folder that nothing was installed from.
        return ""
    lacking = []
    for requirement in requirements:
        # Those for some versions of Python alone have another marker before.
        wanted = re.match(rf"""([\w.-]+)>=([\d.]+)\s*;\s*extra == ['"]{extra}['"]""", requirement)
        if wanted:
            name, least = wanted.groups()
            try:
                found = version(name)
            except PackageNotFoundError:
                lacking.append(name)
            else:
                if _numbers(found) < _numbers(least):
                    lacking.append(f"{name} {least} or newer (here is {found})")
    return f"it needs {', '.join(lacking)}: pip install 'DeepCache[{extra}]'" if lacking else ""


def require(extra: str, what: str) -> None:
    """Refuses to go on without what an extra brings.

    Args:
        extra: the extra.
        what: what needs it.

    Raises:
        MissingExtraError: a package is missing or too old.
    """
    missing = why_missing(extra)
    if missing:
        raise MissingExtraError(f"{what} cannot be used here: {missing}")


def _numbers(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", re.split(r"[a-z+]", release)[0])]
