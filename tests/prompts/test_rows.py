"""Iteration over the rows of prompt files: their values, their errors, URLs, and memory."""

from __future__ import annotations

import json
import re
import tracemalloc
from itertools import islice
from zipfile import ZipFile

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from DeepCache.prompts import Row, read_prompt_set, read_prompts, read_rows


@pytest.fixture
def memory():
    """Writes a prompt file to fsspec's memory and gives its URL."""
    system = fsspec.filesystem("memory")
    written = set()

    def write(name, content):
        system.pipe_file(f"/{name}", content if isinstance(content, bytes) else content.encode("utf-8"))
        written.add(f"/{name}")
        return f"memory://{name}"

    yield write
    for name in written:
        system.rm_file(name)


def as_parquet(path, columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


COCO = {
    "images": [{"id": 9}, {"id": 4}],
    "annotations": [
        {"id": 1, "image_id": 9, "caption": "one"},
        {"id": 2, "image_id": 4, "caption": " two\n"},
        {"id": 3, "image_id": 4, "caption": "three"},
    ],
}
JSON_LINES = '{"Prompt": "one", "Seed": 7, "scale": 1.5, "tags": ["a"], "none": null, "on": true}\n\n"two"\n{"id": 1}\n'
TABLE = [
    Row("line 2", {"id": "a", "prompt": "one", "seed": "7"}),
    Row("line 3", {"id": "", "prompt": "", "seed": " "}),
]


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        (
            "p.txt",
            "one\n\n# no\n two \u2028three\r\n",
            [Row(f"line {number}", {"prompt": text}) for number, text in ((1, "one"), (4, "two"), (5, "three"))],
        ),
        (
            "p.jsonl",
            JSON_LINES,
            [
                Row("line 1", {"prompt": "one", "seed": 7, "scale": 1.5, "tags": ["a"], "none": None, "on": True}),
                Row("line 3", {"prompt": "two"}),
                Row("line 4", {"id": 1}),
            ],
        ),
        ("p.csv", "ID,Prompt,seed\na,one,7\n,, \n", TABLE),
        ("p.tsv", "ID\tPrompt\tseed\na\tone\t7\n\t\t \n", TABLE),
        (
            "several-lines.csv",
            'prompt,note\n"one\ntwo",x\nthree,"y\r\nz"\nfour,\n',
            [
                Row("line 2", {"prompt": "one\ntwo", "note": "x"}),
                Row("line 4", {"prompt": "three", "note": "y\r\nz"}),
                Row("line 6", {"prompt": "four", "note": ""}),
            ],
        ),
        (
            "p.json",
            json.dumps(COCO),
            [Row("annotation 2", {"caption": "two", "id": 4}), Row("annotation 1", {"caption": "one", "id": 9})],
        ),
    ],
)
def test_rows_have_places_and_values(file, name, content, rows):
    assert list(read_rows(file(name, content))) == rows


def test_the_same_prompts_in_every_format_are_the_same(file, tmp_path):
    prompts = [(4, "a red circle"), (7, 'a sign that says "é", open'), (9, "two foxes, asleep")]
    annotations = [{"id": number, "image_id": number, "caption": text} for number, text in prompts]
    paths = [
        file("p.jsonl", "".join(json.dumps({"prompt": text, "id": number}) + "\n" for number, text in prompts)),
        file("p.csv", "id,text\n" + "".join('{},"{}"\n'.format(n, t.replace('"', '""')) for n, t in prompts)),
        file("p.tsv", "Prompt\tid\n" + "".join(f"{text}\t{number}\n" for number, text in prompts)),
        file("p.json", json.dumps({"images": [{"id": number} for number, _ in prompts], "annotations": annotations})),
        as_parquet(tmp_path / "p.parquet", {"ID": [n for n, _ in prompts], "Caption": [t for _, t in prompts]}),
    ]
    assert len({read_prompt_set(path) for path in paths}) == 1
    text = file("p.txt", "".join(f"{text}\n" for _, text in prompts))
    assert {read_prompts(path) for path in [*paths, text]} == {tuple(text for _, text in prompts)}


@pytest.mark.parametrize(
    ("name", "content"),
    [("p.txt", ""), ("p.txt", "# no\n\n"), ("p.jsonl", ""), ("p.jsonl", "\n"), ("p.csv", ""), ("p.tsv", "Prompt\n")],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_empty_files_have_no_rows(file, name, content, mark):
    assert list(read_rows(file(name, mark + content))) == []


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("a red circle", "line 3 is not JSON: Expecting value (character 1)"),
        ("null", "line 3 must be a JSON object or a JSON string, got None"),
        ('{"prompt": "x", "Prompt": "y"}', "line 3 has the key 'prompt' twice"),
        ('{"seed": 1, "seed": 2}', "line 3: an object has the key 'seed' twice"),
        ("[" * 100_000, "line 3: its values are nested too deeply"),
    ],
    ids=["not JSON", "null", "duplicate name", "duplicate key", "nesting"],
)
def test_a_wrong_json_line_is_an_error_of_its_row(file, line, error):
    path = file("p.jsonl", f'"one"\n\n{line}\n"two"\n{line}')
    assert list(read_rows(path)) == [
        Row("line 1", {"prompt": "one"}),
        Row("line 3", {}, error),
        Row("line 4", {"prompt": "two"}),
        Row("line 5", {}, error.replace("line 3", "line 5")),
    ]
    with pytest.raises(ValueError, match=re.escape(f"cannot read the prompt file {str(path)!r}: {error}") + "$"):
        read_prompt_set(path)


@pytest.mark.parametrize(
    ("name", "comma", "hint"),
    [
        (
            "p.csv",
            ",",
            "Enclose a value with a comma, a line break or double quotes in double quotes, and double the quotes in it",
        ),
        ("p.tsv", "\t", "A value cannot contain a tab or a line break"),
    ],
)
def test_a_wrong_number_of_values_is_an_error_of_its_row(file, name, comma, hint):
    path = file(name, "prompt,id\none,1\ntwo\nthree,3,3\nfour,4\n".replace(",", comma))
    wrong = "must have 2 values, one per column, got"
    assert list(read_rows(path)) == [
        Row("line 2", {"prompt": "one", "id": "1"}),
        Row("line 3", {}, f"line 3 {wrong} 1. {hint}"),
        Row("line 4", {}, f"line 4 {wrong} 3. {hint}"),
        Row("line 5", {"prompt": "four", "id": "4"}),
    ]
    message = f"cannot read the prompt file {str(path)!r}: line 3 {wrong} 1. {hint}"
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        read_prompt_set(path)


@pytest.mark.parametrize(
    ("name", "content", "rows", "message"),
    [
        ("p.csv", "id,note\n1,x\n", 0, "the header in line 1 must have a column of text named prompt, caption or text"),
        ("p.csv", 'prompt\none\n"two\nthree\n', 1, "line 3 cannot be split into values (unexpected end of data). "),
        ("p.json", "[]", 0, "a .json file must contain COCO captions"),
    ],
)
def test_an_error_of_the_whole_file_follows_the_rows_before_it(file, name, content, rows, message):
    path = file(name, content)
    found = read_rows(path)
    assert not any(row.error for row in islice(found, rows))
    with pytest.raises(ValueError, match=re.escape(f"cannot read the prompt file {str(path)!r}: {message}")):
        next(found)


def test_invalid_bytes_are_reported_after_valid_rows(file):
    path = file("p.txt", b"\xef\xbb\xbf" + b"one\n" * 10_000 + b"\xff\n")
    rows = read_rows(path)
    assert next(rows) == Row("line 1", {"prompt": "one"})
    with pytest.raises(ValueError, match=re.escape(f"the prompt file {str(path)!r} is not UTF-8 text (byte 40000)")):
        list(rows)


def test_missing_files_are_reported(tmp_path):
    for name in ("nowhere.jsonl", "nowhere.parquet"):
        with pytest.raises(FileNotFoundError, match=f"^there is no prompt file '{re.escape(name)}'$"):
            next(read_rows(name))
        with pytest.raises(FileNotFoundError, match=f"there is no prompt file '{re.escape(name)}'"):
            read_prompt_set(name)
    with pytest.raises(OSError, match=f"cannot read the prompt file {str(tmp_path)!r}: Is a directory"):
        next(read_rows(tmp_path))
    below = tmp_path / "p.txt" / "p.txt"
    below.parent.write_text("one")
    with pytest.raises(FileNotFoundError, match="there is no prompt file"):
        next(read_rows(below))


def test_urls(memory, tmp_path):
    assert list(read_rows(memory("p.txt", "one\n"))) == [Row("line 1", {"prompt": "one"})]
    assert list(read_rows(memory("folder/p.JSONL", '"one"\n[]'))) == [
        Row("line 1", {"prompt": "one"}),
        Row("line 2", {}, "line 2 must be a JSON object or a JSON string, got []"),
    ]
    assert read_prompts(memory("p.csv", "\ufeffprompt,id\r\none,1\r\n")) == ("one",)
    assert read_prompts(memory("p.tsv", "prompt\tid\none, two\t1\n")) == ("one, two",)
    content = '{"images": [{"id": 1}], "annotations": [{"id": 1, "image_id": 1, "caption": "one"}]}'
    assert read_prompts(memory("p.json", content)) == ("one",)
    parquet = as_parquet(tmp_path / "p.parquet", {"prompt": ["one"]})
    assert read_prompts(memory("p.parquet", parquet.read_bytes())) == ("one",)
    assert read_prompts(parquet.as_uri()) == ("one",)


@pytest.mark.parametrize("name", ["p.csv?version=1.2", "p.csv?from=a/b.txt", "a.txt/p.csv"])
def test_the_extension_is_that_of_the_path_in_the_url(memory, name):
    assert read_prompts(memory(name, "prompt\none\n")) == ("one",)


def test_files_in_archives_can_be_read(tmp_path):
    with ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("p.jsonl", '"one"\n')
    assert read_prompts(f"zip://p.jsonl::{(tmp_path / 'all.zip').as_uri()}") == ("one",)


def test_messages_name_the_url(memory):
    with pytest.raises(FileNotFoundError, match=r"^there is no prompt file 'memory://nowhere\.txt'$"):
        next(read_rows("memory://nowhere.txt"))
    with pytest.raises(ValueError, match=r"^cannot read the prompt file 'nothing://p\.txt': Protocol not known"):
        next(read_rows("nothing://p.txt"))
    with pytest.raises(ValueError, match=r"^the prompt file 'memory://p\.csv' is not UTF-8 text \(byte 11\)$"):
        list(read_rows(memory("p.csv", b"prompt\none\n\xff\n")))
    with pytest.raises(ValueError, match=r"^cannot read the prompt file 'memory://p\.jsonl': line 1 must have"):
        read_prompt_set(memory("p.jsonl", "{}"))
    with pytest.raises(ValueError, match=r"^the prompt file 'memory://p\.jsonl' contains no prompt: write one JSON"):
        read_prompt_set(memory("p.jsonl", ""))


LONG = {
    "txt": "a red circle\n" * 50_000,
    "jsonl": '{"prompt": "a red circle"}\n' * 50_000,
    "csv": "prompt,id\n" + "a red circle,1\n" * 50_000,
    "tsv": "prompt\tid\n" + "a red circle\t1\n" * 50_000,
}


@pytest.mark.parametrize("ending", LONG)
def test_the_first_row_is_yielded_before_the_rest_is_read(memory, ending):
    rows = read_rows(memory(f"p.{ending}", LONG[ending]))
    read = fsspec.filesystem("memory").store[f"/p.{ending}"].tell
    assert next(rows).values["prompt"] == "a red circle"
    assert read() < 100_000
    assert sum(1 for _ in rows) == LONG[ending].count("red") - 1
    assert read() == len(LONG[ending])


@pytest.mark.parametrize("ending", LONG)
def test_memory_does_not_grow_with_the_file(file, ending):
    path = file(f"p.{ending}", LONG[ending])
    peaks = []
    for count in (1_000, None):
        tracemalloc.start()
        try:
            for number, _ in enumerate(read_rows(path), start=1):
                if number == count:
                    break
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert path.stat().st_size > 500_000
    assert peaks[1] < peaks[0] + 100_000


def test_partly_read_files_are_closed(file):
    # A file that stays open is a warning, and warnings are errors here.
    rows = read_rows(file("p.txt", "one\ntwo\n"))
    next(rows)
    rows.close()
    with pytest.raises(StopIteration):
        next(rows)
