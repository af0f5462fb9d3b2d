"""Prints results to stdout, and notes to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def print_json(values: Any) -> None:
    print(json.dumps(values, indent=2))


def note(text: str) -> None:
    """Prints a line to stderr."""
    print(text, file=sys.stderr)


def table(*columns: str, text: Collection[str] = (), space: int = 1) -> Table:
    """An empty table. Columns in `text` are aligned left and may wrap; figures never do."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, space, 0, 0))
    for name in columns:
        if name in text:
            made.add_column(name, min_width=10, overflow="fold")
        else:
            made.add_column(name, justify="right", no_wrap=True)
    return made


def print_table(filled: Table) -> None:
    _stdout().print(filled)


def explain(text: str) -> None:
    """Prints what the words of a table mean."""
    _stdout().print(text, style="dim", soft_wrap=True)


def _stdout() -> Console:
    return Console(markup=False, emoji=False, highlight=False)
