"""The code blocks of README.md and of the pages in docs/."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

_BLOCK = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)(?P=fence) *$",
    flags=re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Args:
        page: the file it is in.
        line: where its text begins there, from 1.
        language: the word after the fence.
        text: what is between the fences.
    """

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, from the top."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, block.start("text")) + 1, block["language"].strip(), _unindented(block))
        for block in _BLOCK.finditer(text)
    ]


def _unindented(block: re.Match[str]) -> str:
    return re.sub(f"^{block['indent']}", "", block["text"], flags=re.MULTILINE)


def program_of(diff: str) -> str:
    """The program that a diff leads to."""
    kept = [line for line in diff.splitlines() if not line.startswith("-")]
    return "\n".join(line[2:] if line[:2] in ("+ ", "  ") else line.lstrip("+") for line in kept)


def command_lines(block: Block) -> list[tuple[str, str]]:
    """What is typed in a block for a shell, each line with its place. A line that ends in a backslash goes on.

    In a `console` block with prompts, what follows a `$ ` is typed and the rest is what the programs say.
    """
    prompts = block.language == "console" and "$ " in block.text
    found, begun = [], ""
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        typed = line.removeprefix("$ ") if not prompts or line.startswith("$ ") else ""
        begun += typed.removesuffix("\\")
        if not typed.endswith("\\"):
            if begun.strip() and not begun.lstrip().startswith("#"):
                found.append((begun, f"{block.page.relative_to(ROOT).as_posix()}:{number}"))
            begun = ""
    return found
