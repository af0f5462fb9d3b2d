"""The engine stays small enough to be read: no long file, no long function; ruff holds the complexity."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import DeepCache

FILES = sorted((Path(DeepCache.__file__).parent / "engine").rglob("*.py"))
LONGEST_FILE = 250
LONGEST_FUNCTION = 40


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_no_file_and_no_function_is_long(file):
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= LONGEST_FILE
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert not {name: lines for name, lines in long.items() if lines > LONGEST_FUNCTION}
