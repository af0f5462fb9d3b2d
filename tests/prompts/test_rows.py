"""The rows of every format, one after another: what they say, which cannot be read, and how much is read at a time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tracemalloc
from itertools import islice
from zipfile import ZipFile

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from DeepCache.prompts import Row, read_prompt_set, read_prompts, read_rows


@pytest.fixture
def file(tmp_path):
    """Writes a prompt file."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


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


# what rows say


def test_text(file):
    assert list(read_rows(file("p.txt", "one\n\n# no\n two \u2028three\r\n"))) == [
        Row("line 1", {"prompt": "one"}),
        Row("line 4", {"prompt": "two"}),
        Row("line 5", {"prompt": "three"}),
    ]


def test_json_lines_keep_values_of_any_kind(file):
    content = (
        '{"Prompt": "one", "Seed": 7, "scale": 1.5, "tags": ["a"], "none": null, "on": true}\n\n"two"\n{"id": 1}\n'
    )
    assert list(read_rows(file("p.jsonl", content))) == [
        Row("line 1", {"prompt": "one", "seed": 7, "scale": 1.5, "tags": ["a"], "none": None, "on": True}),
        Row("line 3", {"prompt": "two"}),
        Row("line 4", {"id": 1}),
    ]


def test_tables(file):
    rows = [
        Row("line 2", {"id": "a", "prompt": "one", "seed": "7"}),
        Row("line 3", {"id": "", "prompt": "", "seed": " "}),
    ]
    assert list(read_rows(file("p.csv", "ID,Prompt,seed\na,one,7\n,, \n"))) == rows
    assert list(read_rows(file("p.tsv", "ID\tPrompt\tseed\na\tone\t7\n\t\t \n"))) == rows


def test_a_row_over_several_lines_has_the_place_of_the_first(file):
    content = 'prompt,note\n"one\ntwo",x\nthree,"y\r\nz"\nfour,\n'
    assert list(read_rows(file("p.csv", content))) == [
        Row("line 2", {"prompt": "one\ntwo", "note": "x"}),
        Row("line 4", {"prompt": "three", "note": "y\r\nz"}),
        Row("line 6", {"prompt": "four", "note": ""}),
    ]


def test_coco(file):
    content = {
        "images": [{"id": 9}, {"id": 4}],
        "annotations": [
            {"id": 1, "image_id": 9, "caption": "one"},
            {"id": 2, "image_id": 4, "caption": " two\n"},
            {"id": 3, "image_id": 4, "caption": "three"},
        ],
    }
    assert list(read_rows(file("p.json", json.dumps(content)))) == [
        Row("annotation 2", {"caption": "two", "id": 4}),
        Row("annotation 1", {"caption": "one", "id": 9}),
    ]


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
def test_a_file_without_rows(file, name, content, mark):
    assert list(read_rows(file(name, mark + content))) == []


# rows that cannot be read


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("a red circle", "line 3 is no JSON: Expecting value (character 1)"),
        ('{"prompt": "x"', "line 3 is no JSON: Expecting ',' delimiter (character 15)"),
        ("[]", "line 3 must be a JSON object or a JSON string, got []"),
        ("null", "line 3 must be a JSON object or a JSON string, got None"),
        ('{"prompt": "x", "Prompt": "y"}', "line 3 has the key 'prompt' twice"),
        ('{"seed": 1, "seed": 2}', "line 3: an object has the key 'seed' twice"),
        ("[" * 100_000, "line 3: its values are nested too deeply"),
        ("9" * 5000, "line 3: a number of 5000 digits is too long"),
    ],
)
def test_a_json_line_that_cannot_be_read_ends_nothing(file, line, error):
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
            "a value with a comma, a line break or double quotes in it stands between double quotes, "
            "those in it doubled",
        ),
        ("p.tsv", "\t", "a value cannot hold a tab or a line break"),
    ],
)
def test_a_row_with_more_or_fewer_values_ends_nothing(file, name, comma, hint):
    path = file(name, "prompt,id\none,1\ntwo\nthree,3,3\nfour,4\n".replace(",", comma))
    wrong = "must have as many values as the header has columns, 2, got"
    assert list(read_rows(path)) == [
        Row("line 2", {"prompt": "one", "id": "1"}),
        Row("line 3", {}, f"line 3 {wrong} 1; {hint}"),
        Row("line 4", {}, f"line 4 {wrong} 3; {hint}"),
        Row("line 5", {"prompt": "four", "id": "4"}),
    ]
    message = f"cannot read the prompt file {str(path)!r}: line 3 {wrong} 1; {hint}"
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        read_prompt_set(path)


# files that cannot be read


@pytest.mark.parametrize(
    ("name", "content", "rows", "message"),
    [
        ("p.csv", "id,note\n1,x\n", 0, "line 1 must name the columns, one of them prompt, caption or text, got ['id',"),
        ("p.csv", "prompt,Prompt\n1,x\n", 0, "line 1 names the column 'prompt' twice"),
        ("p.csv", 'prompt\none\n"two\nthree\n', 1, "line 3 cannot be split into values (unexpected end of data): "),
        ("p.tsv", "no header\n", 0, "line 1 must name the columns"),
        ("p.json", "", 0, "it is no JSON: Expecting value (line 1, character 1)"),
        ("p.json", "[]", 0, "a .json file must be COCO's captions"),
    ],
)
def test_what_spoils_the_whole_file(file, name, content, rows, message):
    path = file(name, content)
    found = read_rows(path)
    assert not any(row.error for row in islice(found, rows))
    with pytest.raises(ValueError, match=re.escape(f"cannot read the prompt file {str(path)!r}: {message}")):
        next(found)


def test_bytes_that_are_no_text_after_rows_that_could_be_read(file):
    path = file("p.txt", b"\xef\xbb\xbf" + b"one\n" * 10_000 + b"\xff\n")
    rows = read_rows(path)
    assert next(rows) == Row("line 1", {"prompt": "one"})
    with pytest.raises(ValueError, match=re.escape(f"the prompt file {str(path)!r} is not UTF-8 text (byte 40000)")):
        list(rows)


def test_no_file(tmp_path):
    rows = read_rows("nowhere.jsonl")
    with pytest.raises(FileNotFoundError, match=r"^there is no prompt file 'nowhere\.jsonl'$"):
        next(rows)
    with pytest.raises(OSError, match=f"cannot read the prompt file {str(tmp_path)!r}: Is a directory"):
        next(read_rows(tmp_path))
    below = tmp_path / "p.txt" / "p.txt"
    below.parent.write_text("one")
    with pytest.raises(FileNotFoundError, match="there is no prompt file"):
        next(read_rows(below))


# URLs


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
def test_the_ending_is_that_of_the_path_in_the_url(memory, name):
    assert read_prompts(memory(name, "prompt\none\n")) == ("one",)


def test_a_file_in_an_archive(tmp_path):
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
    with pytest.raises(ValueError, match=r"^the prompt file 'memory://p\.jsonl' holds no prompt: write one JSON"):
        read_prompt_set(memory("p.jsonl", ""))


# one after another


LONG = {
    "txt": "a red circle\n" * 50_000,
    "jsonl": '{"prompt": "a red circle"}\n' * 50_000,
    "csv": "prompt,id\n" + "a red circle,1\n" * 50_000,
    "tsv": "prompt\tid\n" + "a red circle\t1\n" * 50_000,
}


@pytest.mark.parametrize("ending", LONG)
def test_the_first_row_comes_before_the_rest_is_read(memory, ending):
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


def test_a_file_that_is_not_read_to_its_end_is_closed(file):
    # An open file that is forgotten is a warning, and warnings are errors here.
    rows = read_rows(file("p.txt", "one\ntwo\n"))
    next(rows)
    rows.close()
    with pytest.raises(StopIteration):
        next(rows)


def test_plain_files_are_read_without_fsspec_and_pyarrow(file):
    code = (
        "import sys; from DeepCache.prompts import read_rows\n"
        "assert len(list(read_rows(sys.argv[1]))) == 1\n"
        "assert not {'fsspec', 'pyarrow', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, file("p.csv", "prompt\nx")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
