"""Where a prompt file is: on this machine, or at an address that fsspec knows."""

from __future__ import annotations

import re
from codecs import BOM_UTF8, getincrementaldecoder
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

__all__ = ["ending_of", "first_byte_that_is_no_text", "located", "open_bytes"]

_PIECE = 2**20


def located(path: str | Path) -> str | Path:
    """A URL as the text that it is, everything else as a path."""
    return path if isinstance(path, str) and "://" in path else Path(path)


@contextmanager
def open_bytes(place: str | Path) -> Iterator[BinaryIO]:
    """The bytes of a file, to be read piece by piece.

    Raises:
        ImportError: the URL takes a package that is not installed, such as s3fs.
        OSError: the file does not exist or cannot be read.
        ValueError: fsspec knows no such URL.
    """
    if isinstance(place, str):
        from fsspec.core import url_to_fs

        # An archive is closed when nothing holds its file system any more.
        system, path = url_to_fs(place)
        with system.open(path, "rb") as file:
            yield file
    elif place.exists():
        with place.open("rb") as file:
            yield file
    else:
        # Opening it would say something else of some paths that there cannot be, such as one below a file.
        raise FileNotFoundError(str(place))


def ending_of(place: str | Path) -> str:
    """The ending of the file's name in lower case, such as `.csv`; of a URL that of its path."""
    if isinstance(place, Path):
        return place.suffix.lower()
    # What follows is a query, or with :: the file that this one is in.
    path = re.split(r"\?|::", place.partition("://")[2], maxsplit=1)[0]
    return PurePosixPath(path).suffix.lower()


def first_byte_that_is_no_text(place: str | Path) -> int:
    """The number of the first byte of a file that is not UTF-8, from 0, counted without a byte order mark."""
    decoder = getincrementaldecoder("utf-8")()
    before = 0
    with open_bytes(place) as file:
        piece = file.read(_PIECE).removeprefix(BOM_UTF8)
        while True:
            held = len(decoder.getstate()[0])
            try:
                decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                return before - held + error.start
            if not piece:
                return before
            before += len(piece)
            piece = file.read(_PIECE)
