"""Random files: valid ones are read correctly, and invalid ones raise a `ValueError` with the name of the file."""

from __future__ import annotations

import csv
import io
import json
import random
import tempfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from DeepCache.generation import GenerationSettings
from DeepCache.prompts import Prompt, read_prompt_set, read_prompts, read_rows

ENDINGS = ("txt", "jsonl", "csv", "tsv", "json", "parquet")
examples = settings(deadline=None, derandomize=True, max_examples=100)

# Without line ends, other control characters and lone surrogates.
texts = (
    st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1)
    .map(str.strip)
    .filter(lambda text: text and not text.startswith("\ufeff"))
)
prompt_lists = st.lists(texts, min_size=1, max_size=8)


def read(ending, content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"prompts.{ending}")
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return read_prompt_set(path)


def read_or_refuse(ending, content):
    """The prompts; None if the file is refused correctly."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"prompts.{ending}")
        path.write_bytes(content)
        prompts, message = None, ""
        try:
            prompts = read_prompt_set(path)
        except ValueError as error:
            message = str(error)
        if prompts is None:
            assert repr(str(path)) in message
            assert len(message.encode("utf-8")) < 1000
            return None
        assert prompts
        assert all(prompt.text == prompt.text.strip() and prompt.id for prompt in prompts)
        assert GenerationSettings(prompts=read_prompts(path)).count == len(prompts)
        return prompts


def as_json_lines(prompts, ascii_only=False):
    return "".join(json.dumps({"prompt": text}, ensure_ascii=ascii_only) + "\n" for text in prompts)


def as_table(prompts, dialect, columns=("Prompt", "Category")):
    table = io.StringIO(newline="")
    writer = csv.writer(table, dialect)
    writer.writerow(columns)
    writer.writerows([text, *[""] * (len(columns) - 1)] for text in prompts)
    return table.getvalue()


def as_coco(prompts):
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(len(prompts))]
    annotations = [{"id": 100 + number, "image_id": number, "caption": text} for number, text in enumerate(prompts)]
    random.Random(0).shuffle(annotations)
    return json.dumps({"images": images, "annotations": annotations})


def as_parquet(prompts):
    written = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"Prompt": prompts, "seed": range(len(prompts))}), written)
    return written.getvalue()


WRITTEN = {
    "txt": lambda prompts: "\n".join(prompts),
    "jsonl": as_json_lines,
    "csv": lambda prompts: as_table(prompts, "excel"),
    "tsv": lambda prompts: as_table(prompts, "excel-tab"),
    "json": as_coco,
    "parquet": as_parquet,
}


@pytest.mark.parametrize("ending", ENDINGS)
@examples
@given(prompt_lists)
def test_prompts_are_read_as_they_were_written(ending, prompts):
    assume(ending != "txt" or not any(prompt.startswith("#") for prompt in prompts))
    if ending == "json":
        expected = [Prompt(" ".join(text.split()), str(number)) for number, text in enumerate(prompts)]
    else:
        expected = [Prompt(text, str(number)) for number, text in enumerate(prompts, start=1)]
    assert read(ending, WRITTEN[ending](prompts)) == tuple(expected)
    if ending == "jsonl":
        assert read(ending, as_json_lines(prompts, ascii_only=True)) == tuple(expected)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv"])
@examples
@given(st.lists(st.tuples(texts, texts, st.one_of(st.just(""), texts)), min_size=1, max_size=8))
def test_ids_and_categories_are_read_as_they_were_written(ending, rows):
    names = ("caption", "id", "category")
    table = io.StringIO(newline="")
    if ending == "jsonl":
        table.writelines(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    else:
        csv.writer(table, {"csv": "excel", "tsv": "excel-tab"}[ending]).writerows([names, *rows])
    assert read(ending, table.getvalue()) == tuple(Prompt(*row) for row in rows)


@examples
@given(prompt_lists)
def test_quotes_in_tsv_are_ordinary_characters(prompts):
    # A spreadsheet encloses whole values in quotes.
    assume(not any(text[0] == text[-1] == '"' for text in prompts))
    found = read("tsv", "\n".join(("Prompt\tNote", *(f"{text}\t" for text in prompts))))
    assert tuple(prompt.text for prompt in found) == tuple(prompts)


@examples
@given(st.text(st.sampled_from("ab#\t\n\r\v\f\x1c\x85\u2028\u2029 "), max_size=40))
def test_text_has_the_lines_of_splitlines(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "prompts.txt")
        path.write_bytes(text.encode("utf-8"))
        found = [(row.place, row.values["prompt"]) for row in read_rows(path)]
    lines = [(f"line {number}", line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    assert found == [(place, line) for place, line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("ending", ENDINGS)
@examples
@given(st.binary(max_size=200))
def test_random_bytes(ending, content):
    read_or_refuse(ending, content)


@pytest.mark.parametrize("before", [0, 2**20 - 1, 2**20])
@examples
@given(st.binary(max_size=12), st.booleans())
def test_the_position_of_the_first_invalid_byte(before, content, mark):
    content = b"x" * before + content
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        expected = error.start
    else:
        return
    # A file may be cut off within its byte order mark.
    content = (b"\xef\xbb\xbf" if mark else b"") + content
    assume(len(content) > 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "prompts.txt")
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"is not UTF-8 text \(byte {expected}\)$"):
            list(read_rows(path))


@pytest.mark.parametrize("ending", ENDINGS)
@examples
@given(st.text(st.sampled_from('"\\,\t\n\r {}[]:0u#\0promptidé😀'), max_size=60))
def test_random_syntax(ending, content):
    read_or_refuse(ending, content.encode("utf-8"))
    read_or_refuse(ending, f"prompt{content}".encode())


KEYS = ("prompt", "Prompt", "text", "id", "category", "images", "annotations", "image_id", "caption")
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(st.characters(), max_size=8),
        st.sampled_from([*KEYS, "", "\ud800", 10**4000]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    ),
    max_leaves=12,
)


@examples
@given(st.lists(values, min_size=1, max_size=4))
def test_random_json(found):
    read_or_refuse("jsonl", "\n".join(json.dumps(value) for value in found).encode())
    read_or_refuse("json", json.dumps(found[0]).encode())
    read_or_refuse("json", json.dumps({"images": [{"id": 1}], "annotations": found}).encode())


@pytest.mark.parametrize("ending", ENDINGS)
@examples
@given(prompt_lists, st.data())
def test_damaged_files(ending, prompts, data):
    written = WRITTEN[ending](prompts)
    content = written if isinstance(written, bytes) else written.encode("utf-8")
    place = data.draw(st.integers(0, len(content) - 1))
    read_or_refuse(ending, content[:place])
    read_or_refuse(ending, content[place:])
    other = data.draw(st.binary(max_size=3))
    read_or_refuse(ending, content[:place] + other + content[place + 1 :])


@examples
@given(prompt_lists, st.data())
def test_coco_with_a_missing_or_wrong_value(prompts, data):
    whole = json.loads(as_coco(prompts))
    needed = [(whole, "images"), (whole, "annotations")]
    needed += [(image, "id") for image in whole["images"]]
    needed += [(annotation, key) for annotation in whole["annotations"] for key in ("id", "image_id", "caption")]
    holder, key = data.draw(st.sampled_from(needed))
    if data.draw(st.booleans()):
        del holder[key]
    else:
        holder[key] = data.draw(st.sampled_from([None, True, 1.5, {}, [1], "", "\udfff"]))
    assert read_or_refuse("json", json.dumps(whole).encode()) is None


@examples
@given(prompt_lists, st.data())
def test_json_lines_without_a_prompt(prompts, data):
    lines = as_json_lines(prompts, ascii_only=True).split("\n")[:-1]
    place = data.draw(st.integers(0, len(lines) - 1))
    lines[place] = data.draw(st.sampled_from(["{}", '{"id": 1}', "[]", "0", '{"prompt": 0}', '{"prompt": ""}', "x"]))
    with pytest.raises(ValueError, match=rf"line {place + 1}\b"):
        read("jsonl", "\n".join(lines))


@pytest.mark.parametrize(("ending", "dialect"), [("csv", "excel"), ("tsv", "excel-tab")])
@examples
@given(prompt_lists, st.data())
def test_tables_with_a_wrong_header_or_row(ending, dialect, prompts, data):
    for columns in (("Prompt", "Prompt"), ("prompt", "PROMPT"), ("Promt", "Category"), ("", "")):
        with pytest.raises(ValueError, match="line 1 "):
            read(ending, as_table(prompts, dialect, columns))
    lines = as_table(prompts, dialect).split("\r\n")[:-1]
    place = data.draw(st.integers(1, len(lines) - 1))
    lines[place] += {"csv": ",,", "tsv": "\t\t"}[ending]
    with pytest.raises(ValueError, match=f"line {place + 1} must have 2 values, one per column, got 4"):
        read(ending, "\n".join(lines))
