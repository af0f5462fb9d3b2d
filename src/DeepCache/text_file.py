"""Reads a text file, or says in words why that cannot be done."""

from __future__ import annotations

from pathlib import Path

__all__ = ["read_json_text"]


def read_json_text(path: str | Path, what: str) -> str:
    """The text of a file of JSON.

    Args:
        path: the file.
        what: what it is to hold, such as `plan`.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: the file is not UTF-8 text.

    Example:
        >>> read_json_text("nowhere.json", "plan")
        Traceback (most recent call last):
        ...
        FileNotFoundError: cannot read the plan 'nowhere.json': there is no such file. Check the path.
    """
    start = f"cannot read the {what} {str(path)!r}"
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{start}: there is no such file. Check the path.") from error
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{start}: it is a folder. Give a file in it.") from error
    except OSError as error:
        raise OSError(f"{start}: {error.strerror or error}. Check the path and its permissions.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{start}: it is not UTF-8 text (byte {error.start}). Give a JSON file.") from error
    except ValueError as error:
        # Such as a path with a null character.
        raise ValueError(f"{start}: {error}. Check the path.") from error
