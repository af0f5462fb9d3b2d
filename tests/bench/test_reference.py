"""The reference package from a wheel, a folder, or something else."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

import DeepCache
from benchmarks.harness.reference_package import FOLDER
from DeepCache.bench.reference import reference_helper_class


def test_a_wheel_and_its_unpacked_folder_give_the_same_class():
    (wheel,) = FOLDER.glob("*.whl")
    ours = sys.modules["DeepCache"]
    classes = [reference_helper_class(path) for path in (wheel, FOLDER)]
    for cls in classes:
        assert cls.__name__ == "DeepCacheSDHelper"
        assert cls.__module__ == "deepcache"
        assert not issubclass(cls, DeepCache.DeepCacheSDHelper)
    assert {name for name in vars(classes[0]) if name[0] != "_"} == {
        name for name in vars(classes[1]) if name[0] != "_"
    }
    # It has the name of ours and must not take its place.
    assert sys.modules["DeepCache"] is ours
    assert "deepcache" not in sys.modules


def test_it_is_loaded_once():
    assert reference_helper_class(FOLDER) is reference_helper_class(FOLDER)


def test_a_missing_path_is_reported_with_the_download_command(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no reference package at '.*nowhere.whl'; pip download DeepCache==0.1.1"
    ):
        reference_helper_class(tmp_path / "nowhere.whl")


def _empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


def _other_package(path: Path) -> Path:
    (path / "DeepCache" / "extension").mkdir(parents=True)
    return path


def _no_wheel(path: Path) -> Path:
    path.write_text("no zip")
    return path


def _other_wheel(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("DeepCache/__init__.py", "")
    return path


@pytest.mark.parametrize("make", [_empty_folder, _other_package, _no_wheel, _other_wheel])
def test_another_package_is_refused(make, tmp_path):
    path = make(tmp_path / "thing")
    with pytest.raises(
        ValueError, match=r"does not hold the reference package.*pip download DeepCache==0.1.1"
    ) as caught:
        reference_helper_class(path)
    assert repr(str(path)) in str(caught.value)
