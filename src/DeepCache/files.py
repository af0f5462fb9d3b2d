"""Reads JSON files, and writes files that appear complete or not at all."""

from __future__ import annotations

import gzip
import os
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["PARTIAL_SUFFIX", "atomic_file", "read_json_text", "write_atomically"]

PARTIAL_SUFFIX = ".partial"
"""How the name of a file ends while it is written."""


def write_atomically(path: str | Path, data: str | bytes) -> None:
    """Writes a file of the local disk so that no reader sees half of it, and creates its folder.

    Example:
        >>> write_atomically("folder/numbers.txt", "1 2 3")
        >>> Path("folder/numbers.txt").read_text()
        '1 2 3'
    """
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that gets its name when the context ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        with partial.open("wb") as file:
            yield file
            # Otherwise a power cut may leave the name without the bytes.
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.filename == str(partial):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        partial.unlink(missing_ok=True)
    if os.name != "nt":  # Windows cannot open folders
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_json_text(path: str | Path, what: str) -> str:
    """Reads the text of a JSON file, or of one that gzip compressed (`.gz`).

    Args:
        path: the file.
        what: its content, for messages, such as `plan`.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: the file is not UTF-8 text.

    Example:
        >>> read_json_text("nowhere.json", "plan")
        Traceback (most recent call last):
        ...
        FileNotFoundError: cannot read the plan 'nowhere.json': there is no such file. Check the path.
    """
    start = f"cannot read the {what} {str(path)!r}"
    try:
        data = Path(path).read_bytes()
        return (gzip.decompress(data) if Path(path).suffix == ".gz" else data).decode("utf-8")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{start}: it is not a complete gzip file. Give another file.") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{start}: there is no such file. Check the path.") from error
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{start}: it is a folder. Give a file in it.") from error
    except OSError as error:
        raise OSError(f"{start}: {error.strerror or error}. Check the path and its permissions.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{start}: it is not UTF-8 text (byte {error.start}). Give a JSON file.") from error
    except ValueError as error:  # such as a null character in the path
        raise ValueError(f"{start}: {error}. Check the path.") from error
