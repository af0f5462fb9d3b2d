"""Reads prompt files, whose format follows from the extension."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import chain
from pathlib import Path, PurePath
from typing import BinaryIO, TextIO

from DeepCache.prompts.json_files import COCO_EXPECTED, coco_rows, json_line_rows
from DeepCache.prompts.rows import Prompt, Row, prompt_of
from DeepCache.prompts.tables import csv_rows, parquet_rows, tsv_rows


def read_rows(path: str | Path) -> Iterator[Row]:
    """Iterates over the rows of a prompt file with all their values, in the formats of `read_prompt_set`.

    The file is read as the rows are requested, in constant memory; only COCO's `.json` is read as a whole. The values
    are those of the file and are not checked.

    A row that cannot be read does not end the iteration: it is a `Row` with an `error` and without values. This happens
    for a line of `.jsonl` that is not a JSON object or string or has a key twice, a row of a table with more or fewer
    values than the header, and a row of `.parquet` whose text is not UTF-8.

    An empty file has no rows, except for `.json` and `.parquet`, which cannot be empty.

    Args:
        path: the file, or a URL supported by fsspec, such as `s3://bucket/prompts.jsonl`.

    Raises:
        ImportError: the file is `.parquet` and pyarrow is not installed, or a package for the URL is missing.
        OSError: the file does not exist or cannot be read.
        ValueError: the file as a whole is not UTF-8 text or not what its extension says. All errors are raised during
            iteration, possibly after some rows.

    Example:
        >>> _ = Path("prompts.jsonl").write_text('{"Prompt": "a red circle", "seed": 7}\\n[]\\n', encoding="utf-8")
        >>> for row in read_rows("prompts.jsonl"):
        ...     print(row.values or row.error)
        {'prompt': 'a red circle', 'seed': 7}
        line 2 must be a JSON object or a JSON string, got []
    """
    name = repr(str(_located(path)))
    try:
        with _opened(path) as file:
            yield from _format(path)[0](file)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"there is no prompt file {name}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt file {name} is not UTF-8 text (byte {_first_invalid_byte(path)})") from error
    except ValueError as error:
        raise ValueError(f"cannot read the prompt file {name}: {error}") from error
    except OSError as error:
        raise OSError(f"cannot read the prompt file {name}: {error.strerror or error}") from error


def read_prompt_set(path: str | Path) -> tuple[Prompt, ...]:
    """Reads the prompts of a file, in its order.

    The format follows from the file's extension. The case of the extension and of the names of columns and keys is
    ignored. The text is UTF-8.

    - `.jsonl`: one JSON object per line with the prompt as `prompt`, `caption` or `text`, and optionally an `id` and a
      `category`; or one JSON string per line.
    - `.csv`, `.tsv`: a table with a header and the same column names, such as `PartiPrompts.tsv`.
    - `.json`: COCO captions, such as `captions_val2017.json`; the first caption of every image, in the order of the
      image ids.
    - `.parquet`: a table with the same column names. Columns other than text, numbers and booleans are ignored. It
      requires pyarrow (`pip install "DeepCache[batch]"`).
    - all others: text with one prompt per line; blank lines and lines that start with # are skipped.

    Args:
        path: the file, or a URL supported by fsspec, such as `s3://bucket/prompts.jsonl`.

    Raises:
        ImportError: the file is `.parquet` and pyarrow is not installed, or a package for the URL is missing.
        OSError: the file does not exist or cannot be read.
        ValueError: the file is not UTF-8 text, is not what its extension says, or contains no prompt; the message names
            the line, the annotation of COCO captions, or the row of Parquet.

    Example:
        >>> text = 'Prompt\\tCategory\\na sign that says "Open"\\tArtifacts\\n'
        >>> _ = Path("prompts.tsv").write_text(text, encoding="utf-8")
        >>> read_prompt_set("prompts.tsv")
        (Prompt(text='a sign that says "Open"', id='1', category='Artifacts'),)
    """
    name = repr(str(_located(path)))
    prompts = []
    for number, row in enumerate(read_rows(path), start=1):
        try:
            prompts.append(prompt_of(row, number))
        except ValueError as error:
            raise ValueError(f"cannot read the prompt file {name}: {error}") from error
    if not prompts:
        raise ValueError(f"the prompt file {name} contains no prompt: {_format(path)[1]}")
    return tuple(prompts)


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """Reads the texts of the prompts of a file. See `read_prompt_set` for the formats and errors.

    Example:
        >>> _ = Path("prompts.txt").write_text("a red circle\\n# a comment\\na blue star\\n", encoding="utf-8")
        >>> read_prompts("prompts.txt")
        ('a red circle', 'a blue star')
    """
    return tuple(prompt.text for prompt in read_prompt_set(path))


def text_rows(lines: Iterable[str]) -> Iterator[Row]:
    """One row per line; blank lines and lines that start with # are skipped."""
    # Unicode has more line ends than files do.
    split = chain.from_iterable(line.splitlines() for line in lines)
    for number, line in enumerate(split, start=1):
        prompt = line.strip()
        if prompt and not prompt.startswith("#"):
            yield Row(f"line {number}", {"prompt": prompt})


_Rows = Callable[[BinaryIO], Iterator[Row]]


def _decoded(rows: Callable[[TextIO], Iterator[Row]], newline: str = "") -> _Rows:
    def rows_of(file: BinaryIO) -> Iterator[Row]:
        with TextIOWrapper(file, encoding="utf-8-sig", newline=newline) as text:
            yield from rows(text)

    return rows_of


_TABLE = "write a header with a column prompt, caption or text, and one prompt per line below it"
_TEXT = (_decoded(text_rows), "write one per line; blank lines and lines that start with # are skipped")
# The rows of each format, and the content of a file that has some. JSON strings may contain the line ends of Unicode.
_FORMATS: dict[str, tuple[_Rows, str]] = {
    ".jsonl": (
        _decoded(json_line_rows, newline="\n"),
        'write one JSON object per line, such as {"prompt": "a red circle"}',
    ),
    ".csv": (_decoded(csv_rows), _TABLE),
    ".tsv": (_decoded(tsv_rows), _TABLE),
    ".json": (_decoded(coco_rows), COCO_EXPECTED),
    ".parquet": (parquet_rows, "write a table with a column prompt, caption or text and one prompt per row"),
}


def _format(path: str | Path) -> tuple[_Rows, str]:
    place = str(_located(path))
    if "://" in place:
        # A query, or after :: the archive, may follow the path.
        place = re.split(r"\?|::", place.partition("://")[2], maxsplit=1)[0]
    return _FORMATS.get(PurePath(place).suffix.lower(), _TEXT)


def _located(path: str | Path) -> str | Path:
    """A URL as text, everything else as a path."""
    return path if isinstance(path, str) and "://" in path else Path(path)


@contextmanager
def _opened(path: str | Path) -> Iterator[BinaryIO]:
    place = _located(path)
    if isinstance(place, str):
        from fsspec.core import url_to_fs

        # An archive is closed when its file system is released.
        system, name = url_to_fs(place)
        with system.open(name, "rb") as file:
            yield file
    else:
        with place.open("rb") as file:
            yield file


def _first_invalid_byte(path: str | Path) -> int:
    """The position of the first byte of a file that is not UTF-8, not counting a byte order mark."""
    position = 0
    with _opened(path) as file:
        for number, line in enumerate(file):
            text = line.removeprefix(BOM_UTF8) if number == 0 else line
            try:
                text.decode("utf-8")
            except UnicodeDecodeError as error:
                return position + error.start
            position += len(text)
    return position
