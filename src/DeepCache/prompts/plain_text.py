"""Prompts as plain text, one a line."""

from __future__ import annotations

from collections.abc import Iterator

from DeepCache.prompts.rows import Row

__all__ = ["text_rows"]


def text_rows(text: str) -> Iterator[Row]:
    """One row for each line; blank lines and lines that start with # are skipped."""
    for number, line in enumerate(text.splitlines(), start=1):
        prompt = line.strip()
        if prompt and not prompt.startswith("#"):
            yield Row(f"line {number}", {"prompt": prompt})
