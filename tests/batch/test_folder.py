"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from DeepCache.batch.folder import BatchFolder


@pytest.fixture(params=["a path", "file", "memory"])
def folder(request, tmp_path):
    place = tmp_path / "there"
    urls = {"a path": place, "file": place.as_uri(), "memory": f"memory://{uuid.uuid4().hex}/there"}
    return BatchFolder(urls[request.param])


@pytest.fixture
def full(monkeypatch):
    """A disk that is full when a file is brought to it."""

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)


def files(path):
    return {file.name: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_file_is_read_as_it_was_written(folder):
    folder.write("ab/one", b"1")
    folder.write("ab/one", b"22")
    assert folder.read("ab/one") == b"22"
    with folder.open("ab/one") as file:
        assert file.read() == b"22"


def test_file_that_is_not_there(folder):
    assert folder.read("one") is None
    folder.remove("one")
    folder.make()
    assert folder.read("one") is None
    folder.remove("one")


def test_removed_file_is_gone(folder):
    folder.write("one", b"1")
    folder.remove("one")
    assert folder.read("one") is None


def test_names_and_sizes_in_order(folder):
    for name in ("b/2", "a/10", "a/1", "a/deep/3", "top"):
        folder.write(name, name.encode())
    assert folder.folders("") == ["a", "b"]
    assert list(folder.sizes("a")) == [("1", 3), ("10", 4)]
    assert list(folder.sizes("")) == [("top", 3)]


def test_nothing_is_in_a_folder_that_is_not_there(folder):
    assert folder.folders("nowhere") == []
    assert list(folder.sizes("nowhere")) == []


def test_folder_can_be_made_twice(folder):
    folder.make()
    folder.make()
    assert list(folder.sizes("")) == []


def test_files_of_the_disk_are_put_whole(folder, tmp_path):
    (tmp_path / "source").write_bytes(b"x" * 100_000)
    folder.write("one", b"1")
    folder.put(tmp_path / "source", "one")
    assert folder.read("one") == b"x" * 100_000
    assert list(folder.sizes("")) == [("one", 100_000)]


def test_path_is_that_of_the_operating_system(tmp_path):
    for url in (tmp_path, str(tmp_path), tmp_path.as_uri()):
        folder = BatchFolder(url)
        assert folder.local
        assert Path(folder.path("a/b")) == tmp_path / "a" / "b"
        assert Path(folder.path()) == tmp_path
        assert str(folder) == str(url)
    assert not BatchFolder("memory://x").local


@pytest.mark.usefixtures("full")
def test_write_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match=r"cannot write .*/ab/one.*No space left"):
        BatchFolder(tmp_path).write("ab/one", b"1")
    assert files(tmp_path) == {}


def test_write_that_fails_leaves_the_file_that_was_there(tmp_path, request):
    folder = BatchFolder(tmp_path)
    folder.write("one", b"old")
    (tmp_path / "source").write_bytes(b"new")
    request.getfixturevalue("full")
    with pytest.raises(OSError, match=r"cannot write .*/one.*No space left"):
        folder.write("one", b"new")
    with pytest.raises(OSError, match=r"cannot write .*/one.*No space left"):
        folder.put(tmp_path / "source", "one")
    assert files(tmp_path) == {"one": b"old", "source": b"new"}


def test_write_that_is_interrupted_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    folder = BatchFolder(tmp_path)
    folder.write("one", b"old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        folder.write("one", b"new")
    assert files(tmp_path) == {"one": b"old"}


def test_name_is_given_once_the_bytes_are_on_the_disk(tmp_path, monkeypatch):
    there = []
    monkeypatch.setattr(os, "fsync", lambda _: there.append((tmp_path / "one").exists()))
    BatchFolder(tmp_path).write("one", b"1")
    # The second is for the folder, which holds the name.
    assert there == [False, True]


def test_what_a_killed_run_left_half_written_goes(tmp_path):
    folder = BatchFolder(tmp_path)
    folder.write("ab/one.png", b"1")
    (tmp_path / "ab" / ".two.png.0123.partial").write_bytes(b"2")
    assert list(folder.sizes("ab")) == [("one.png", 1)]
    assert len(files(tmp_path)) == 2
    folder.sweep("ab")
    assert files(tmp_path) == {"one.png": b"1"}


def test_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path / "file").touch()
    folder = BatchFolder(tmp_path / "file" / "below")
    with pytest.raises(OSError, match=r"cannot make the folder '.*below'"):
        folder.make()
    with pytest.raises(OSError, match="cannot write"):
        folder.write("one", b"1")


def test_url_that_nobody_knows():
    with pytest.raises(ValueError, match="nowhere"):
        BatchFolder("nowhere://x")
