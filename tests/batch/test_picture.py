"""A picture's file tells what made it, and whether it is whole."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from DeepCache.batch import BatchRecord
from DeepCache.batch.picture import filed, picture_bytes, picture_path, picture_record
from DeepCache.generation import read_settings

IMAGE = Image.linear_gradient("L").resize((16, 8)).convert("RGB")
VERSIONS = {"torch": "2.9"}
RECORD = BatchRecord(
    id="0123456789ab",
    row_id="first",
    prompt='ein "roter" Kreis ★\nand a second line',
    negative_prompt="",
    seed=2**63 - 1,
    width=16,
    height=8,
    settings='{"steps": 6, "deepcache": {"cache_interval": 3}}',
    model="fedc",
    full_steps=2,
    shallow_steps=4,
    skipped_steps=0,
)


def drawn(**changes):
    return picture_bytes(IMAGE, replace(RECORD, **changes), VERSIONS)


def noted(**changes):
    """A whole picture whose notes are these."""
    with Image.open(io.BytesIO(drawn())) as image:
        notes = image.info | changes
    info = PngInfo()
    for name, text in notes.items():
        if text is not None:
            info.add_text(name, text)
    file = io.BytesIO()
    IMAGE.save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def test_same_picture_has_the_same_bytes_whoever_drew_it():
    assert drawn() == drawn(host="here", seconds=1.5, batch=4)
    assert drawn() != drawn(seed=1)


def test_record_comes_back():
    data = drawn()
    assert picture_record(data, RECORD.id) == filed(RECORD, data)


@pytest.mark.parametrize("prompt", ["x", "é", "★", "a\0b", "\x85", " padded ", "x" * 100_000])
def test_any_prompt_comes_back(prompt):
    assert picture_record(drawn(prompt=prompt), RECORD.id).prompt == prompt


def test_record_tells_of_the_file():
    record = filed(RECORD, b"abc")
    assert record.path == picture_path(RECORD.id) == "pictures/01/0123456789ab.png"
    assert record.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert record.bytes == 3


def test_pixels_are_those_of_the_image():
    with Image.open(io.BytesIO(drawn())) as image:
        assert image.tobytes() == IMAGE.tobytes()


def test_settings_are_read_as_those_of_other_pictures(tmp_path):
    (tmp_path / "x.png").write_bytes(drawn())
    notes = read_settings(tmp_path / "x.png")
    assert (notes["prompt"], notes["seed"]) == (RECORD.prompt, 2**63 - 1)
    assert notes["settings"] == json.loads(RECORD.settings)


def test_picture_of_another_row_is_none():
    assert picture_record(drawn(), "ab" * 6) is None


def test_picture_that_was_cut_off_anywhere_is_none():
    data = drawn()
    assert [length for length in range(len(data)) if picture_record(data[:length], RECORD.id)] == []


def test_picture_with_any_byte_broken_is_none():
    data = drawn()
    taken = []
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 0x55
        if picture_record(bytes(broken), RECORD.id):
            taken.append(position)
    assert taken == []


@pytest.mark.parametrize(
    "changes",
    [
        {"id": None},
        {"prompt": None},
        {"steps": "{}"},
        {"steps": "[1, 2]"},
        {"steps": "3"},
        {"steps": "{"},
        {"seed": "x"},
    ],
)
def test_picture_with_other_notes_is_none(changes):
    assert picture_record(noted(), RECORD.id) is not None
    assert picture_record(noted(**changes), RECORD.id) is None


@pytest.mark.parametrize("data", [b"", b"no picture", IMAGE.tobytes()])
def test_what_is_no_picture_is_none(data):
    assert picture_record(data, RECORD.id) is None
