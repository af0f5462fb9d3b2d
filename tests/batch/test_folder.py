"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

import pytest

from DeepCache.batch.folder import BatchFolder


@pytest.fixture(params=["a path", "file", "memory"])
def folder(request, tmp_path):
    place = tmp_path / "there"
    urls = {"a path": place, "file": place.as_uri(), "memory": f"memory://{uuid.uuid4().hex}/there"}
    return BatchFolder(urls[request.param])


def fail_on_sync(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(os, "fsync", fail)


def contents(path):
    return {file.name: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_files_are_read_as_they_were_written(folder):
    folder.write("ab/one", b"1")
    folder.write("ab/one", b"22")
    assert folder.read("ab/one") == b"22"
    with folder.open("ab/one") as file:
        assert file.read() == b"22"
    with folder.create("ab/one") as file:
        file.write(b"x" * 100_000)
    assert folder.read("ab/one") == b"x" * 100_000
    folder.remove("ab/one")
    assert folder.read("ab/one") is None


def test_missing_files(folder):
    for _ in range(2):
        assert folder.read("one") is None
        folder.remove("one")
        assert list(folder.files("")) == list(folder.files("nowhere")) == []
        folder.make()
        folder.make()


def test_names_and_sizes(folder):
    for name in ("b/2", "a/10", "a/1", "a/deep/3", "a/deep/deeper/4", "top"):
        folder.write(name, name.encode())
    assert sorted(folder.files("a")) == [("a/1", 3), ("a/10", 4), ("a/deep/3", 8)]
    assert sorted(folder.files("")) == [("a/1", 3), ("a/10", 4), ("b/2", 3), ("top", 3)]


def test_paths_are_those_of_the_operating_system(tmp_path):
    for url in (tmp_path, str(tmp_path), tmp_path.as_uri()):
        folder = BatchFolder(url)
        assert folder.local
        assert Path(folder.path("a/b")) == tmp_path / "a" / "b"
        assert str(folder) == str(url)
    assert not BatchFolder("memory://x").local


@pytest.mark.parametrize("before", [{}, {"one": b"old"}])
def test_failed_writes_leave_the_previous_file(tmp_path, monkeypatch, before):
    folder = BatchFolder(tmp_path)
    for name, data in before.items():
        folder.write(name, data)
    fail_on_sync(monkeypatch, OSError(28, "No space left on device"))
    with pytest.raises(OSError, match=r"cannot write .*/one.*No space left"):
        folder.write("one", b"new")
    fail_on_sync(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        folder.write("one", b"new")
    assert contents(tmp_path) == before


def test_failed_writes_leave_the_previous_object():
    folder = BatchFolder(f"memory://{uuid.uuid4().hex}")
    folder.write("one", b"old")
    with suppress(KeyboardInterrupt), folder.create("one") as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert folder.read("one") == b"old"


def test_files_get_their_names_once_they_are_on_the_disk(tmp_path, monkeypatch):
    there = []
    monkeypatch.setattr(os, "fsync", lambda _: there.append((tmp_path / "one").exists()))
    BatchFolder(tmp_path).write("one", b"1")
    # The second call is for the folder, which contains the name.
    assert there == [False, True]


def test_incomplete_files_are_ignored_and_removed(tmp_path):
    folder = BatchFolder(tmp_path)
    folder.write("ab/one.png", b"1")
    (tmp_path / "ab" / ".two.png.0123.partial").write_bytes(b"2")
    assert list(folder.files("ab")) == [("ab/one.png", 1)]
    folder.remove_partial("", depth=1)
    assert len(contents(tmp_path)) == 2
    folder.remove_partial("ab")
    assert contents(tmp_path) == {"one.png": b"1"}


def test_a_file_instead_of_a_folder(tmp_path):
    (tmp_path / "file").touch()
    folder = BatchFolder(tmp_path / "file" / "below")
    with pytest.raises(OSError, match=r"cannot create the folder '.*below'"):
        folder.make()
    with pytest.raises(OSError, match="cannot write"):
        folder.write("one", b"1")


def test_unknown_urls_are_refused():
    with pytest.raises(ValueError, match="nowhere"):
        BatchFolder("nowhere://x")
