"""The output folder of a batch, local or at any URL that fsspec supports."""

from __future__ import annotations

import os
import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from DeepCache.files import PARTIAL_SUFFIX, atomic_file


class BatchFolder:
    """A folder whose files appear complete or not at all.

    Args:
        url: a path, or a URL of fsspec such as `s3://bucket/folder`, which may require an additional package.

    Raises:
        ValueError: fsspec does not support the URL.
        ImportError: a package for the URL is missing.

    Example:
        >>> folder = BatchFolder("memory://images")
        >>> folder.write("ab/one.txt", b"1")
        >>> folder.read("ab/one.txt"), list(folder.files("ab"))
        (b'1', [('ab/one.txt', 1)])
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        from fsspec.core import url_to_fs

        self.url = os.fspath(url)
        found: tuple[Any, str] = url_to_fs(os.path.expanduser(self.url))
        self._files, self._root = found
        protocol = self._files.protocol
        self.local = "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def __str__(self) -> str:
        return self.url

    def path(self, name: str) -> str:
        """The path of a file for the file system."""
        return posixpath.join(self._root, name)

    def make(self) -> None:
        """Creates the folder if it does not exist."""
        try:
            self._files.makedirs(self._root, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot create the folder {self.url!r}: {error.strerror or error}") from error

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """Opens a file for writing, which replaces the one of that name when the context ends without an error."""
        try:
            if self.local:
                with atomic_file(self.path(name)) as file:
                    yield file
            else:
                with tempfile.TemporaryDirectory(prefix="deepcache-batch-") as folder:
                    path = Path(folder) / posixpath.basename(name)
                    with path.open("wb") as file:
                        yield file
                    self._files.put_file(str(path), self.path(name))
        except OSError as error:
            place = posixpath.join(self.url, name)
            raise OSError(f"cannot write {place!r}: {error.strerror or error}") from error

    def write(self, name: str, data: bytes) -> None:
        """Writes or replaces a file. On an `OSError` the previous one stays."""
        with self.create(name) as file:
            file.write(data)

    def open(self, name: str) -> Any:
        """Opens a file for reading bytes."""
        return self._files.open(self.path(name), "rb")

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if it does not exist."""
        try:
            data: bytes = self._files.cat_file(self.path(name))
        except FileNotFoundError:
            return None
        return data

    def remove(self, name: str) -> None:
        """Removes a file if it exists."""
        if self._files.exists(self.path(name)):
            self._files.rm_file(self.path(name))

    def files(self, name: str) -> Iterator[tuple[str, int]]:
        """The name and the size in bytes of every complete file in a folder and its subfolders."""
        for path, size in self._walk(name, depth=2):
            if not path.endswith(PARTIAL_SUFFIX):
                yield path, size

    def remove_partial(self, name: str, depth: int = 2) -> None:
        """Removes the incomplete files that killed processes leave in a folder. Object stores have none."""
        for path, _ in self._walk(name, depth) if self.local else ():
            if path.endswith(PARTIAL_SUFFIX):
                self._files.rm_file(self.path(path))

    def _walk(self, name: str, depth: int) -> Iterator[tuple[str, int]]:
        self._files.invalidate_cache()
        top = self.path(name) if name else self._root
        with suppress(FileNotFoundError):
            for _, _, files in self._files.walk(top, maxdepth=depth, detail=True, on_error="raise"):
                for file in files.values():
                    yield posixpath.relpath(file["name"], self._root), file["size"]
