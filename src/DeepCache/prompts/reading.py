"""Prompt files: the format is known by the ending of the name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from DeepCache.prompts.coco import COCO_EXPECTED, coco_rows
from DeepCache.prompts.json_lines import json_line_rows
from DeepCache.prompts.plain_text import text_rows
from DeepCache.prompts.prompt import Prompt
from DeepCache.prompts.rows import Row, prompt_of
from DeepCache.prompts.tables import comma_rows, tab_rows

__all__ = ["read_prompt_set", "read_prompts"]


@dataclass(frozen=True)
class _Format:
    rows: Callable[[str], Iterator[Row]]
    expected: str


_TABLE = "write a header with a column prompt, caption or text, and below it one prompt a line"
_TEXT = _Format(text_rows, "write one a line; blank lines and lines that start with # are skipped")
_FORMATS = {
    ".jsonl": _Format(json_line_rows, 'write one JSON object a line, such as {"prompt": "a red circle"}'),
    ".csv": _Format(comma_rows, _TABLE),
    ".tsv": _Format(tab_rows, _TABLE),
    ".json": _Format(coco_rows, COCO_EXPECTED),
}


def read_prompt_set(path: str | Path) -> tuple[Prompt, ...]:
    """The prompts in a file, in its order.

    The format is known by the ending of the file's name; upper and lower case are the same in it, and in the names of
    columns and keys too. The text is UTF-8.

    - `.jsonl`: a JSON object a line with the prompt as `prompt`, `caption` or `text`, and an `id` and a `category` if
      it likes; or just a JSON string.
    - `.csv`, `.tsv`: a table with a header; the columns have the same names. `PartiPrompts.tsv` is such a file.
    - `.json`: COCO's captions, such as `captions_val2017.json`; of every image the first caption, in the order of the
      image ids.
    - anything else: text with one prompt a line; blank lines and lines that start with # are skipped.

    Args:
        path: the file.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: the file is not UTF-8 text, is not what its ending says, or holds no prompt; the message names the
            line, or in COCO's captions the annotation.

    Example:
        >>> text = 'Prompt\\tCategory\\na sign that says "Open"\\tArtifacts\\n'
        >>> _ = Path("prompts.tsv").write_text(text, encoding="utf-8")
        >>> read_prompt_set("prompts.tsv")
        (Prompt(text='a sign that says "Open"', id='1', category='Artifacts'),)
    """
    path = Path(path)
    text = _text_of(path)
    form = _FORMATS.get(path.suffix.lower(), _TEXT)
    try:
        prompts = tuple(prompt_of(row, number) for number, row in enumerate(form.rows(text), start=1))
    except ValueError as error:
        raise ValueError(f"cannot read the prompt file {str(path)!r}: {error}") from error
    if not prompts:
        raise ValueError(f"the prompt file {str(path)!r} holds no prompt: {form.expected}")
    return prompts


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """The texts of the prompts in a file, as `read_prompt_set` reads it.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: the file is not UTF-8 text, is not what its ending says, or holds no prompt.

    Example:
        >>> _ = Path("prompts.txt").write_text("a red circle\\n# no prompt\\na blue star\\n", encoding="utf-8")
        >>> read_prompts("prompts.txt")
        ('a red circle', 'a blue star')
    """
    return tuple(prompt.text for prompt in read_prompt_set(path))


def _text_of(path: Path) -> str:
    if not path.exists():
        raise FileNotFoundError(f"there is no prompt file {str(path)!r}")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt file {str(path)!r} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise OSError(f"cannot read the prompt file {str(path)!r}: {error.strerror}") from error
