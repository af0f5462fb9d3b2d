"""Reports words that the project does not use, and the standard ones: `python .ci/vocabulary.py [PATH ...]`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# The words of prompts are data.
LEFT_OUT = ("src/DeepCache/prompts/general.txt", ".ci/vocabulary.txt")
SUFFIXES = (".py", ".md", ".html", ".toml", ".yml", ".txt", ".css")


def main() -> int:
    rules = []
    for line in (HERE / "vocabulary.txt").read_text(encoding="utf-8").splitlines():
        pattern, arrow, replacement = line.rpartition(" -> ")
        if arrow:
            rules.append((re.compile(pattern, re.IGNORECASE), replacement))
    names = subprocess.run(
        ["git", "ls-files", *sys.argv[1:]], cwd=HERE.parent, capture_output=True, text=True, check=True
    ).stdout
    found = 0
    for name in names.splitlines():
        path = HERE.parent / name
        if path.suffix not in SUFFIXES or name in LEFT_OUT or not path.exists():
            continue
        # In identifiers an underscore separates words.
        for number, line in enumerate(path.read_text(encoding="utf-8").replace("_", " ").splitlines(), start=1):
            for pattern, replacement in rules:
                if match := pattern.search(line):
                    print(f"{name}:{number}: {match[0]!r}: use {replacement}")
                    found += 1
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
