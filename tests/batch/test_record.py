"""The metadata of images, and whether an image is complete."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from DeepCache.batch import BatchRecord
from DeepCache.batch.record import decode_record, encode_image, image_path, with_file
from DeepCache.generation import read_settings

IMAGE = Image.linear_gradient("L").resize((16, 8)).convert("RGB")
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


def encoded(**changes):
    return encode_image(IMAGE, replace(RECORD, **changes), {"torch": "2.9"})


DATA = encoded()


def with_metadata(**changes):
    """A complete image with other metadata."""
    with Image.open(io.BytesIO(DATA)) as image:
        notes = image.info | changes
    info = PngInfo()
    for name, text in notes.items():
        if text is not None:
            info.add_text(name, text)
    file = io.BytesIO()
    IMAGE.save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def test_the_bytes_do_not_depend_on_the_run():
    assert encoded() == encoded(host="here", seconds=1.5, batch=4) == DATA
    assert encoded(seed=1) != DATA


def test_records_and_pixels_can_be_read():
    assert decode_record(DATA, RECORD.id) == with_file(RECORD, DATA)
    with Image.open(io.BytesIO(DATA)) as image:
        assert image.tobytes() == IMAGE.tobytes()


@pytest.mark.parametrize("prompt", ["x", "é", "★", "a\0b", "\x85", " padded ", "x" * 100_000])
def test_any_prompt_can_be_read(prompt):
    assert decode_record(encoded(prompt=prompt), RECORD.id).prompt == prompt


def test_records_describe_the_file():
    record = with_file(RECORD, b"abc")
    assert record.path == image_path(RECORD.id) == "pictures/01/0123456789ab.png"
    assert record.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert record.bytes == 3


def test_settings_are_read_like_those_of_other_images(tmp_path):
    (tmp_path / "x.png").write_bytes(DATA)
    notes = read_settings(tmp_path / "x.png")
    assert (notes["prompt"], notes["seed"]) == (RECORD.prompt, 2**63 - 1)
    assert notes["settings"] == json.loads(RECORD.settings)


def test_images_of_other_rows_and_other_files_are_refused():
    assert decode_record(DATA, "ab" * 6) is None
    for data in (b"", b"not an image", IMAGE.tobytes()):
        assert decode_record(data, RECORD.id) is None


def test_damaged_images_are_refused():
    assert [length for length in range(len(DATA)) if decode_record(DATA[:length], RECORD.id)] == []
    accepted = []
    for position in range(len(DATA)):
        damaged = bytearray(DATA)
        damaged[position] ^= 0x55
        if decode_record(bytes(damaged), RECORD.id):
            accepted.append(position)
    assert accepted == []


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
def test_images_with_other_metadata_are_refused(changes):
    assert decode_record(with_metadata(), RECORD.id) is not None
    assert decode_record(with_metadata(**changes), RECORD.id) is None
