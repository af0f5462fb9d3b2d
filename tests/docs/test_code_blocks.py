"""Every code block of README.md and of the pages in docs/ does what it says, page by page."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.main import get_command

from DeepCache.cli import app
from tests.docs.code_blocks import PAGES, ROOT, Block, blocks_of, command_lines, program_of
from tests.docs.offline import FILES, LESS, SUBSTITUTIONS, offline, substituted
from tests.docs.shell_lines import check_line

SHOWN = {"text", "csv"}
SPHINX = {"{eval-rst}", "{toctree}"}
WITH_BLOCKS = [page for page in PAGES if any(block.language not in SPHINX for block in blocks_of(page))]
ALL = [block for page in PAGES for block in blocks_of(page)]

# What `print` says in a comment beside it, where that is a pattern of full and shallow steps.
_PATTERN = re.compile(r"print\(.*\)  # ([F.0-9]{6,})$", flags=re.MULTILINE)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A folder with what a reader has, on a machine without a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPCACHE_CACHE", str(tmp_path / "cache"))
    offline(monkeypatch)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "ComfyUI" / "custom_nodes").mkdir(parents=True)
    threads = torch.get_num_threads()
    yield tmp_path
    # A batch sets them for its process.
    torch.set_num_threads(threads)


# Diffusers hands tensors to NumPy in a way that NumPy is about to drop.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_blocks_of_a_page_run(page, reader):
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(page):
        match block.language:
            case "python":
                _run(block, block.text, names)
            case "diff":
                _run(block, program_of(block.text), names)
            case "bash" | "console":
                for line, place in command_lines(block):
                    _check(line, place)
            case "json":
                json.loads(block.text)
            case "toml":
                # The commands of the page that come after it read it.
                (reader / "deepcache.toml").write_text(block.text, encoding="utf-8")
            case "yaml":
                pytest.importorskip("yaml").safe_load(block.text)
            case language:
                assert language in SHOWN | SPHINX, f"{block.place}: no check for a block of {language or 'no language'}"


def _run(block: Block, text: str, names: dict[str, Any]) -> None:
    # The lines of the block keep their numbers, so that a traceback points to the page.
    code = compile("\n" * (block.line - 1) + substituted(text), str(block.page), "exec")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code, names)
    lines = said.getvalue().splitlines()
    assert [pattern for pattern in _PATTERN.findall(substituted(text)) if pattern not in lines] == [], block.place


def _check(line: str, place: str) -> None:
    try:
        check_line(line)
    except Exception as error:
        raise AssertionError(f"{place}: {line.strip()}\n{error}") from error


def test_every_substitution_is_needed():
    for pattern, _ in SUBSTITUTIONS:
        assert any(re.search(pattern, block.text) for block in ALL), pattern
    for command in LESS:
        assert any(f"deepcache {command}" in block.text for block in ALL), command
    for name in FILES:
        assert any(name in block.text for block in ALL), name


def test_the_examples_in_the_help_of_the_commands_have_options_that_there_are():
    for name, command in get_command(app).commands.items():
        (example,) = re.findall(r"Example: deepcache (.*)", command.help)
        first, *arguments = shlex.split(example)
        assert first == name
        command.make_context(name, arguments)


def test_a_line_of_no_known_kind_fails(reader):
    for line in (
        "curl https://example.com",
        "deepcache conjure",
        "deepcache generate --no-such-option",
        "make no-such-target",
        "pip install 'DeepCache[no-such-extra]'",
        "pip install --no-such-option DeepCache",
        "python -m benchmarks.no_such_module",
        "python -m benchmarks.parity --no-such-option",
        "python no_such_file.py",
        "ray start --no-such-option",
    ):
        with pytest.raises(AssertionError, match=re.escape(line)):
            _check(line, "page.md:1")


def test_a_block_is_found_with_its_place(tmp_path):
    page = ROOT / "example.md"
    found = _blocks("# Page\n\n- an item\n\n  ```bash\n  make \\\n    demo\n  ```\n\n```python\n1\n```\n", tmp_path)
    assert [(block.line, block.language, block.text) for block in found] == [
        (6, "bash", "make \\\n  demo\n"),
        (11, "python", "1\n"),
    ]
    assert command_lines(Block(page, 6, "bash", found[0].text)) == [("make   demo", "example.md:7")]
    console = Block(page, 1, "console", "$ make demo\ndrawn\n")
    assert command_lines(console) == [("make demo", "example.md:1")]
    assert program_of("  one\n- two\n+ three\n\n") == "one\nthree\n"


def _blocks(text: str, folder: Path) -> list[Block]:
    (folder / "page.md").write_text(text, encoding="utf-8")
    return blocks_of(folder / "page.md")
