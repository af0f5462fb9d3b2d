"""The folder that a batch is written to, on this machine or anywhere that fsspec reaches."""

from __future__ import annotations

import os
import posixpath
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from DeepCache.files import PARTIAL_SUFFIX, atomic_file, write_atomically

__all__ = ["BatchFolder"]


class BatchFolder:
    """A folder of files that appear whole or not at all.

    On a disk a file is written under another name, brought to the disk, and renamed. Object stores show an object once
    it is whole.

    Args:
        url: a path, or a URL of fsspec such as `s3://bucket/folder`, for which fsspec may take a further package.

    Raises:
        ValueError: the URL is of a kind that fsspec does not know.
        ImportError: a package for this kind of URL is not installed.

    Example:
        >>> folder = BatchFolder("memory://pictures")
        >>> folder.write("ab/one.txt", b"1")
        >>> folder.read("ab/one.txt"), list(folder.sizes("ab"))
        (b'1', [('one.txt', 1)])
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        from fsspec.core import url_to_fs

        self.url = os.fspath(url)
        found: tuple[Any, str] = url_to_fs(os.path.expanduser(self.url))
        self._files, self._root = found
        self.local = "file" in _protocols(self._files)

    def __str__(self) -> str:
        return self.url

    def path(self, name: str = "") -> str:
        """Where a file of this name is, for fsspec's file system or for the operating system."""
        return posixpath.join(self._root, name) if name else self._root

    def make(self) -> None:
        """Makes the folder where it is not there.

        Raises:
            OSError: it cannot be made.
        """
        try:
            self._files.makedirs(self._root, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot make the folder {self.url!r}: {error.strerror or error}") from error

    def write(self, name: str, data: bytes) -> None:
        """Writes a file, in the place of any other of that name.

        Raises:
            OSError: it cannot be written; nothing is left behind then.
        """
        with self._told(name):
            if self.local:
                write_atomically(self.path(name), data)
            else:
                self._files.pipe_file(self.path(name), data)

    def put(self, path: Path, name: str) -> None:
        """Writes a file that is on this machine's disk, as `write` does, without taking it into memory.

        Raises:
            OSError: it cannot be written; nothing is left behind then.
        """
        with self._told(name):
            if self.local:
                with atomic_file(self.path(name)) as file, path.open("rb") as source:
                    shutil.copyfileobj(source, file)
            else:
                self._files.put_file(str(path), self.path(name))

    def read(self, name: str) -> bytes | None:
        """What is in a file; None where there is none."""
        try:
            data: bytes = self._files.cat_file(self.path(name))
        except FileNotFoundError:
            return None
        return data

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        if self._files.exists(self.path(name)):
            self._files.rm_file(self.path(name))

    def open(self, name: str) -> Any:
        """A file, opened to read its bytes."""
        return self._files.open(self.path(name), "rb")

    def folders(self, name: str) -> list[str]:
        """The names of the folders in a folder, in order."""
        return sorted(posixpath.basename(each["name"]) for each in self._list(name) if each["type"] == "directory")

    def sizes(self, name: str) -> Iterator[tuple[str, int]]:
        """Name and bytes of every whole file in a folder, in order."""
        for each in sorted(self._list(name), key=lambda each: str(each["name"])):
            base = posixpath.basename(each["name"])
            if each["type"] == "file" and not base.endswith(PARTIAL_SUFFIX):
                yield base, each["size"]

    def sweep(self, name: str) -> None:
        """Removes what somebody left half written in a folder on a disk. In object stores there is no such thing."""
        for each in self._list(name) if self.local else ():
            if each["name"].endswith(PARTIAL_SUFFIX):
                self._files.rm_file(each["name"])

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            place = posixpath.join(self.url, name)
            raise OSError(f"cannot write {place!r}: {error.strerror or error}") from error

    def _list(self, name: str) -> list[dict[str, Any]]:
        try:
            self._files.invalidate_cache(self.path(name))
            found: list[dict[str, Any]] = self._files.ls(self.path(name), detail=True)
        except FileNotFoundError:
            return []
        return found


def _protocols(files: Any) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)
