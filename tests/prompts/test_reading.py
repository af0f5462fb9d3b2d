"""The formats of prompt files, and the errors of files that are not what their extension says."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from DeepCache.prompts import Prompt, read_prompt_set, read_prompts


def refused(path, *words):
    with pytest.raises(ValueError, match=re.escape(repr(str(path)))) as caught:
        read_prompt_set(path)
    with pytest.raises(ValueError, match=re.escape(str(caught.value))):
        read_prompts(path)
    for word in words:
        assert word in str(caught.value)


def coco(annotations, images=(1, 2), **more):
    """COCO's captions; an annotation is its id, its image's id and its caption."""
    return json.dumps(
        {
            "info": {"year": 2017},
            "images": [{"id": number, "file_name": f"{number:012d}.jpg"} for number in images],
            "annotations": [
                {"image_id": image_id, "id": number, "caption": caption} for number, image_id, caption in annotations
            ],
            **more,
        }
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "one\n\n# no\ntwo\n"),
        ("p.jsonl", '{"prompt": "one"}\n\n{"prompt": "two"}\n'),
        ("p.csv", "prompt\none\n\ntwo\n"),
        ("p.tsv", "Note\tPrompt\n\tone\n\n\ttwo\n"),
        ("p.json", coco([(5, 1, "one"), (6, 2, "two")])),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_byte_order_marks_line_ends_and_upper_case_extensions(file, name, content, mark, ends):
    content = (mark + content).replace("\n", ends)
    assert read_prompts(file(name, content)) == ("one", "two")
    assert read_prompts(file(name.upper(), content)) == ("one", "two")
    assert read_prompts(file(name, content.rstrip())) == ("one", "two")


@pytest.mark.parametrize("name", ["prompts", "p.prompts", "p.md", ".jsonl", "p.json.txt", "p.csv.bak"])
def test_other_extensions_are_text(file, name):
    assert read_prompts(file(name, '{"prompt": "x"}\n')) == ('{"prompt": "x"}',)


def test_reading_does_not_import_torch_and_optional_packages(file):
    code = (
        "import sys; from DeepCache.prompts import read_prompts, bundled_prompts\n"
        "assert read_prompts(sys.argv[1]) == ('x',); bundled_prompts('shapes')\n"
        "assert not {'torch', 'diffusers', 'transformers', 'fsspec', 'pyarrow'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, file("p.csv", "prompt\nx")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv", "tsv", "json"])
def test_files_that_are_not_utf_8_are_refused(file, ending):
    refused(file(f"p.{ending}", b"x\xff"), "is not UTF-8 text (byte 1)")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", "", ["write one per line; blank lines and lines that start with # are skipped"]),
        ("p.txt", "\n# only a comment\n", ["write one per line"]),
        ("p.jsonl", "", ['write one JSON object per line, such as {"prompt": "a red circle"}']),
        ("p.jsonl", "\n \n", ["write one JSON object per line"]),
        ("p.csv", "", ["write a header with a column prompt, caption or text"]),
        ("p.csv", "prompt,id\n\n", ["write a header"]),
        ("p.tsv", "", ["write a header with a column prompt, caption or text"]),
        ("p.json", coco([]), ["captions_val2017.json"]),
        ("p.json", coco([], images=()), ["captions_val2017.json"]),
    ],
)
def test_files_without_a_prompt_are_refused(file, name, content, words):
    refused(file(name, content), "contains no prompt: ", *words)


def test_prompts_of_text_are_numbered(file):
    assert read_prompt_set(file("p.txt", "# no\n\n  one \ntwo # yes\n")) == (
        Prompt("one", "1"),
        Prompt("two # yes", "2"),
    )


def test_json_lines(file):
    lines = (
        '{"prompt": " one ", "id": 17, "category": "Animals", "seed": 3}',
        '{"caption": "two", "id": "b", "category": null}',
        "",
        '{"text": "three", "id": null}',
        '{"text": "no", "caption": "no", "prompt": "four"}',
        '"five"',
        '{"Prompt": "six", "Category": "Food & Beverage"}',
        ' {"prompt": "# \\"seven\\"\\u00e9\\ud83d\\ude00\u2028"} ',
    )
    assert read_prompt_set(file("p.jsonl", "\n".join(lines))) == (
        Prompt("one", "17", "Animals"),
        Prompt("two", "b"),
        Prompt("three", "3"),
        Prompt("four", "4"),
        Prompt("five", "5"),
        Prompt("six", "6", "Food & Beverage"),
        Prompt('# "seven"é😀', "7"),
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a red circle", ["line 3 is not JSON: Expecting value (character 1)"]),
        ('{"prompt": "x"', ["line 3 is not JSON: Expecting ',' delimiter (character 15)"]),
        ('{"prompt": "x"} {"prompt": "y"}', ["line 3 is not JSON: Extra data"]),
        ("\ufeff{}", ["line 3 is not JSON"]),
        ('{"prompt": "a\tb"}', ["line 3 is not JSON: Invalid control character"]),
        ("{}", ["line 3 must have a 'prompt', 'caption' or 'text', got []"]),
        ('{"promt": "x"}', ["line 3 must have", "['promt']"]),
        ("[]", ["line 3 must be a JSON object or a JSON string, got []"]),
        ("17", ["line 3 must be a JSON object or a JSON string, got 17"]),
        ("null", ["line 3 must be", "None"]),
        ('{"prompt": null, "text": "x"}', ["line 3: the prompt must be text, got None"]),
        ('{"text": ["x"]}', ["line 3: the text must be text, got ['x']"]),
        ('{"prompt": ""}', ["line 3: the prompt must not be empty"]),
        ('{"caption": " "}', ["line 3: the caption must not be empty"]),
        ('""', ["line 3: the prompt must not be empty"]),
        ('"\\ud800"', ["line 3: the prompt is not valid text: '\\ud800'"]),
        ('{"prompt": "x\\udc00"}', ["line 3: the prompt is not valid text: 'x\\udc00'"]),
        ('{"prompt": "x", "id": "\\ud800"}', ["line 3: the id is not valid text"]),
        ('{"prompt": "x", "category": "\\ud800"}', ["line 3: the category is not valid text"]),
        ('{"prompt": "x", "id": 1.5}', ["line 3: the id must be text or a whole number, got 1.5"]),
        ('{"prompt": "x", "id": NaN}', ["line 3: the id", "nan"]),
        ('{"prompt": "x", "id": true}', ["line 3: the id", "True"]),
        ('{"prompt": "x", "category": {}}', ["line 3: the category must be text or a whole number, got {}"]),
        ('{"prompt": "x", "prompt": "y"}', ["line 3: an object has the key 'prompt' twice"]),
        ('{"prompt": "x", "Prompt": "y"}', ["line 3 has the key 'prompt' twice"]),
        ("[" * 100_000, ["line 3: its values are nested too deeply"]),
        ('{"a":' * 100_000, ["line 3: its values are nested too deeply"]),
        ("[" * 200 + "]" * 200, ["line 3 must be a JSON object or a JSON string, got [[[[[["]),
        ('{"prompt": "x", "id": ' + "9" * 5000 + "}", ["line 3: a number of 5000 digits is too long"]),
        ('{"prompt": ' + "9" * 4000 + "}", ["line 3: the prompt must be text, got 9999"]),
    ],
)
def test_wrong_json_lines_are_refused(file, line, words):
    path = file("p.jsonl", f'{{"prompt": "fine"}}\n\n{line}\n{{"prompt": "fine too"}}\n')
    refused(path, f"cannot read the prompt file {str(path)!r}: ", *words)


def test_messages_are_short(file):
    with pytest.raises(ValueError, match="must have") as caught:
        read_prompts(file("p.jsonl", json.dumps({"x" * 10_000 + str(number): 1 for number in range(1000)})))
    assert len(str(caught.value)) < 1000


def test_csv(file):
    content = (
        "id,note,Prompt,CATEGORY\n"
        "a,,one,Animals\n"
        ',x," two, with ""quotes"" and, commas ",\n'
        "\n"
        'c,"over\ntwo lines","three\nfour",People\n'
        'd,,12" vinyl,\n'
    )
    assert read_prompt_set(file("p.csv", content)) == (
        Prompt("one", "a", "Animals"),
        Prompt('two, with "quotes" and, commas', "2"),
        Prompt("three\nfour", "c", "People"),
        Prompt('12" vinyl', "d"),
    )


@pytest.mark.parametrize("column", ["prompt", "Prompt", " PROMPT ", "caption", "text", '"Text"'])
def test_names_of_the_prompt_column(file, column):
    assert read_prompts(file("p.csv", f"x,{column}\n1,one\n")) == ("one",)


def test_the_prompt_column_precedes_the_others(file):
    assert read_prompts(file("p.csv", "text,caption,prompt\na,b,c\n")) == ("c",)
    assert read_prompts(file("p.csv", "text,caption\na,b\n")) == ("b",)


def test_several_columns_may_have_no_name(file):
    assert read_prompts(file("p.csv", "prompt,,\none,,x\n")) == ("one",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "a red circle\n",
            ["the header in line 1 must have a column of text named prompt, caption or text, got ['a red circle']"],
        ),
        ("\nprompts;id\nx;1\n", ["the header in line 2 must have a column", "['prompts;id']"]),
        ("prompt,Prompt\nx,y\n", ["the header in line 1 has the column 'prompt' twice"]),
        ("prompt,id,ID\nx,1,2\n", ["the header in line 1 has the column 'id' twice"]),
        (
            "prompt\none\ntwo, and more\n",
            ["line 3 must have 1 values, one per column, got 2", "in double quotes"],
        ),
        ("id,prompt\n1\n", ["line 2 must have 2 values, one per column, got 1"]),
        ("id,prompt\n1,one\n2,\n", ["line 3: the prompt must not be empty"]),
        ('id,caption\n1,"one\ntwo"\n2," "\n', ["line 4: the caption must not be empty"]),
        (
            'prompt\none\n"two\nthree\n',
            ["line 3 cannot be split into values (unexpected end of data)", "double quotes"],
        ),
        ('prompt\n"one" two\n', ["line 2 cannot be split into values (',' expected after '\"')"]),
        ("prompt\n" + "x" * 200_000, ["line 2 cannot be split into values (field larger than field limit"]),
        ("x" * 200_000, ["line 1 cannot be split into values (field larger than field limit"]),
    ],
)
def test_wrong_csv_is_refused(file, content, words):
    refused(file("p.csv", content), *words)


def test_tsv_of_parti_prompts(file):
    content = (
        "Prompt\tCategory\tChallenge\tNote\n"
        'a sign that says "OPEN"\tOutdoor Scenes\tWriting & Symbols\t\n'
        '"H E L L O" in chalk on a wall \tIllustrations\tWriting & Symbols\t\n'
        'bears at a card table\tAnimals\tImagination\tAfter "A Painting"\n'
        '"ONE" and "TWO"\tAbstract\tBasic\t\n'
        '12" vinyl, a "red" one\tArtifacts\tBasic\t"\n'
    )
    assert read_prompt_set(file("PartiPrompts.tsv", content)) == (
        Prompt('a sign that says "OPEN"', "1", "Outdoor Scenes"),
        Prompt('"H E L L O" in chalk on a wall', "2", "Illustrations"),
        Prompt("bears at a card table", "3", "Animals"),
        Prompt('"ONE" and "TWO"', "4", "Abstract"),
        Prompt('12" vinyl, a "red" one', "5", "Artifacts"),
    )


@pytest.mark.parametrize(
    ("value", "prompt"),
    [
        ('"a ""red"" circle"', 'a "red" circle'),
        ('"""OPEN"" on a door"', '"OPEN" on a door'),
        ('"a red circle"', "a red circle"),
        ('"""all"""', '"all"'),
        ('"', '"'),
        ('"""', '"""'),
        ('"a"b"', '"a"b"'),
        ('""a"', '""a"'),
        ("\u2028x\x85y\x0bz", "x\x85y\x0bz"),
    ],
)
def test_quotes_in_tsv(file, value, prompt):
    assert read_prompts(file("p.tsv", f'"id"\t"prompt"\n1\t{value}\n')) == (prompt,)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a red circle\n", ["the header in line 1 must have a column", "['a red circle']"]),
        ("prompt,id\nx,1\n", ["the header in line 1 must have a column", "['prompt,id']"]),
        ("Prompt\tprompt\nx\ty\n", ["the header in line 1 has the column 'prompt' twice"]),
        (
            "Prompt\tCategory\none\tx\ntwo\n",
            ["line 3 must have 2 values, one per column, got 1", "cannot contain a tab"],
        ),
        ("Prompt\tCategory\none\tx\ty\n", ["line 2 must have 2 values, one per column, got 3"]),
        ("Prompt\tCategory\none\tx\n\t\n", ["line 3: the prompt must not be empty"]),
        ('prompt\n""\n', ["line 2: the prompt must not be empty"]),
        ("prompt\n" + "x" * 200_000, ["line 2 cannot be split into values (field larger than field limit"]),
    ],
)
def test_wrong_tsv_is_refused(file, content, words):
    refused(file("p.tsv", content), *words)


def test_coco_has_the_first_caption_of_each_image_in_the_order_of_the_image_ids(file):
    content = coco(
        [
            (31, 900, "last"),
            (12, 87, "the second one"),
            (11, 87, " the\nfirst   one.\n"),
            (10, 900, "first of the last"),
            (30, 9, "numbers are sorted as numbers"),
            (-3, 87, "below 0"),
        ],
        images=(900, 9, 87, 5),
    )
    assert read_prompt_set(file("captions_val2017.json", content)) == (
        Prompt("numbers are sorted as numbers", "9"),
        Prompt("below 0", "87"),
        Prompt("first of the last", "900"),
    )


def test_whitespace_in_coco_captions_is_normalized(file):
    assert read_prompts(file("p.json", coco([(1, 1, "\n a\n\n b\t c\u3000d ")]))) == ("a b c d",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["it is not JSON: Expecting value (line 1, character 1)"]),
        ('{"images": [],\n "annotations": [}', ["it is not JSON: Expecting value (line 2, character 18)"]),
        ('["a red circle"]', ["must contain COCO captions", ".jsonl", "got ['a red circle']"]),
        ('"x"', ["must contain COCO captions", "got 'x'"]),
        ("{}", ["it has no 'images'", "must contain COCO captions"]),
        ('{"images": []}', ["it has no 'annotations'", "must contain COCO captions"]),
        ('{"annotations": []}', ["it has no 'images'"]),
        ('{"images": {}, "annotations": []}', ["'images' must be a list, got {}"]),
        ('{"images": [], "annotations": "x"}', ["'annotations' must be a list, got 'x'"]),
        ('{"images": [1], "annotations": []}', ["images[0] must be an object, got 1"]),
        ('{"images": [{"id": 1}, {}], "annotations": []}', ["images[1] has no 'id'"]),
        ('{"images": [{"id": "1"}], "annotations": []}', ["images[0]: the id must be a whole number, got '1'"]),
        ('{"images": [{"id": true}], "annotations": []}', ["images[0]: the id must be a whole number, got True"]),
        ('{"images": [{"id": 1.0}], "annotations": []}', ["images[0]: the id must be a whole number, got 1.0"]),
        (coco([], images=(3, 3)), ["images[1]: the id 3 occurs twice"]),
        ('{"images": [], "annotations": [null]}', ["annotations[0] must be an object, got None"]),
        ('{"images": [], "annotations": [{"image_id": 1}]}', ["annotations[0] has no 'id'"]),
        ('{"images": [], "annotations": [{"id": 1}]}', ["annotation 1 has no 'image_id'"]),
        (coco([(5, "1", "x")]), ["annotation 5: the image_id must be a whole number, got '1'"]),
        (coco([(5, 1, "x"), (5, 2, "y")]), ["annotations[1]: the id 5 occurs twice"]),
        (coco([(5, 3, "x")]), ["annotation 5 has the image_id 3, which is not among the 'images'"]),
        (coco([(5, 1, "x"), (6, 1, " \n")]), ["annotation 6: the caption must not be empty"]),
        (coco([(5, 1, None)]), ["annotation 5: the caption must be text, got None"]),
        (coco([(5, 1, "\ud800")]), ["annotation 5: the caption is not valid text: '\\ud800'"]),
        (
            '{"images": [{"id": 1}], "annotations": [{"id": 5, "image_id": 1, "bbox": []}]}',
            ["annotation 5 has no 'caption'", "captions_val2017.json"],
        ),
        ('{"images": [], "images": [], "annotations": []}', ["an object has the key 'images' twice"]),
        ('{"images": ' + "[" * 100_000, ["its values are nested too deeply"]),
        ('{"images": [{"id": ' + "1" * 5000 + "}]}", ["a number of 5000 digits is too long"]),
    ],
)
def test_other_json_is_refused(file, content, words):
    path = file("p.json", content)
    refused(path, f"cannot read the prompt file {str(path)!r}: ", *words)
