"""Prompt files: the format is known by the ending of the name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO, TextIO

from DeepCache.prompts.coco import COCO_EXPECTED, coco_rows
from DeepCache.prompts.json_lines import json_line_rows
from DeepCache.prompts.opening import ending_of, first_byte_that_is_no_text, located, open_bytes
from DeepCache.prompts.parquet import PARQUET_EXPECTED, parquet_rows
from DeepCache.prompts.plain_text import text_rows
from DeepCache.prompts.prompt import Prompt
from DeepCache.prompts.rows import Row, prompt_of
from DeepCache.prompts.tables import comma_rows, tab_rows

__all__ = ["read_prompt_set", "read_prompts", "read_rows"]


@dataclass(frozen=True)
class _Format:
    rows: Callable[[BinaryIO], Iterator[Row]]
    expected: str


def _decoded(rows: Callable[[TextIO], Iterator[Row]], newline: str = "") -> Callable[[BinaryIO], Iterator[Row]]:
    def rows_of(file: BinaryIO) -> Iterator[Row]:
        with TextIOWrapper(file, encoding="utf-8-sig", newline=newline) as text:
            yield from rows(text)

    return rows_of


_TABLE = "write a header with a column prompt, caption or text, and below it one prompt a line"
_TEXT = _Format(_decoded(text_rows), "write one a line; blank lines and lines that start with # are skipped")
_FORMATS = {
    ".jsonl": _Format(
        _decoded(json_line_rows, newline="\n"), 'write one JSON object a line, such as {"prompt": "a red circle"}'
    ),
    ".csv": _Format(_decoded(comma_rows), _TABLE),
    ".tsv": _Format(_decoded(tab_rows), _TABLE),
    ".json": _Format(_decoded(coco_rows), COCO_EXPECTED),
    ".parquet": _Format(parquet_rows, PARQUET_EXPECTED),
}


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a prompt file one after another, with everything that they say, in the formats of `read_prompt_set`.

    The file is read as the rows are asked for, and what is held of it does not grow with it; only COCO's `.json` is
    read as a whole, since JSON has no other way. The values are as the file has them: whether there is a prompt among
    them and what it is worth is for the caller to see.

    A row that cannot be read by itself ends nothing: it is a `Row` with an `error` and without values. Such are a line
    of `.jsonl` that is no JSON, neither an object nor a string, or has a key twice; a row of a table with more or fewer
    values than the header; and a row of `.parquet` whose text is not UTF-8.

    A file that holds nothing has no rows, except where its format does not allow that: `.json` and `.parquet`.

    Args:
        path: the file, or a URL that fsspec knows, such as `s3://bucket/prompts.jsonl`.

    Raises:
        ImportError: pyarrow is not installed and the file is `.parquet`, or what fsspec takes for the URL is not.
        OSError: the file does not exist or cannot be read.
        ValueError: the file is not UTF-8 text or not what its ending says, as a whole. Like all of these it is raised
            when a row is asked for, not before, and it may come after rows that could be read.

    Example:
        >>> _ = Path("prompts.jsonl").write_text('{"Prompt": "a red circle", "seed": 7}\\n[]\\n', encoding="utf-8")
        >>> for row in read_rows("prompts.jsonl"):
        ...     print(row.values or row.error)
        {'prompt': 'a red circle', 'seed': 7}
        line 2 must be a JSON object or a JSON string, got []
    """
    place = located(path)
    shown_place = repr(str(place))
    try:
        with open_bytes(place) as file:
            yield from _format_of(place).rows(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no prompt file {shown_place}") from error
    except UnicodeDecodeError as error:
        byte = first_byte_that_is_no_text(place)
        raise ValueError(f"the prompt file {shown_place} is not UTF-8 text (byte {byte})") from error
    except ValueError as error:
        raise ValueError(f"cannot read the prompt file {shown_place}: {error}") from error
    except OSError as error:
        raise OSError(f"cannot read the prompt file {shown_place}: {error.strerror or error}") from error


def read_prompt_set(path: str | Path) -> tuple[Prompt, ...]:
    """The prompts in a file, in its order.

    The format is known by the ending of the file's name; upper and lower case are the same in it, and in the names of
    columns and keys too. The text is UTF-8.

    - `.jsonl`: a JSON object a line with the prompt as `prompt`, `caption` or `text`, and an `id` and a `category` if
      it likes; or just a JSON string.
    - `.csv`, `.tsv`: a table with a header; the columns have the same names. `PartiPrompts.tsv` is such a file.
    - `.json`: COCO's captions, such as `captions_val2017.json`; of every image the first caption, in the order of the
      image ids.
    - `.parquet`: a table as above, in which a column is text, numbers or truth values; others are left out. It takes
      pyarrow, which `pip install "DeepCache[batch]"` brings.
    - anything else: text with one prompt a line; blank lines and lines that start with # are skipped.

    Args:
        path: the file, or a URL that fsspec knows, such as `s3://bucket/prompts.jsonl`.

    Raises:
        ImportError: pyarrow is not installed and the file is `.parquet`, or what fsspec takes for the URL is not.
        OSError: the file does not exist or cannot be read.
        ValueError: the file is not UTF-8 text, is not what its ending says, or holds no prompt; the message names the
            line, in COCO's captions the annotation, or in Parquet the row.

    Example:
        >>> text = 'Prompt\\tCategory\\na sign that says "Open"\\tArtifacts\\n'
        >>> _ = Path("prompts.tsv").write_text(text, encoding="utf-8")
        >>> read_prompt_set("prompts.tsv")
        (Prompt(text='a sign that says "Open"', id='1', category='Artifacts'),)
    """
    place = located(path)
    prompts = []
    for number, row in enumerate(read_rows(path), start=1):
        try:
            prompts.append(prompt_of(row, number))
        except ValueError as error:
            raise ValueError(f"cannot read the prompt file {str(place)!r}: {error}") from error
    if not prompts:
        raise ValueError(f"the prompt file {str(place)!r} holds no prompt: {_format_of(place).expected}")
    return tuple(prompts)


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """The texts of the prompts in a file, as `read_prompt_set` reads it.

    Raises:
        ImportError: pyarrow is not installed and the file is `.parquet`, or what fsspec takes for the URL is not.
        OSError: the file does not exist or cannot be read.
        ValueError: the file is not UTF-8 text, is not what its ending says, or holds no prompt.

    Example:
        >>> _ = Path("prompts.txt").write_text("a red circle\\n# no prompt\\na blue star\\n", encoding="utf-8")
        >>> read_prompts("prompts.txt")
        ('a red circle', 'a blue star')
    """
    return tuple(prompt.text for prompt in read_prompt_set(path))


def _format_of(place: str | Path) -> _Format:
    return _FORMATS.get(ending_of(place), _TEXT)
