"""Prompts as plain text, one a line."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TextIO

from DeepCache.prompts.rows import Row

__all__ = ["text_rows"]


def text_rows(text: TextIO) -> Iterator[Row]:
    """One row for each line; blank lines and lines that start with # are skipped.

    Args:
        text: an open text, with its line ends as they are.
    """
    # Unicode has more line ends than files know.
    lines = chain.from_iterable(line.splitlines() for line in text)
    for number, line in enumerate(lines, start=1):
        prompt = line.strip()
        if prompt and not prompt.startswith("#"):
            yield Row(f"line {number}", {"prompt": prompt})
