"""Brings what the pages link to outside this folder onto the site.

GitHub's readers follow `../benchmarks/fidelity.json.gz` to the file. On the site

- a Markdown file of the repository is a page (`SHOWN`): the page of that name here has a link to the file, for GitHub's
  readers, and the site puts the file's text in its place;
- a folder of results is the page that lists them, with the command that made each;
- any other file is a copy to download, which MyST sees to;
- any other folder is not on the site, so its name stays and the link goes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from sphinx.application import Sphinx

from DeepCache.files import read_json_text

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent

SHOWN = {
    "overview": ROOT / "README.md",
    "changelog": ROOT / "CHANGELOG.md",
    "contributing": ROOT / "CONTRIBUTING.md",
    "training": ROOT / "training" / "README.md",
    "benchmark-scripts": ROOT / "benchmarks" / "README.md",
}
"""The files of the repository that are pages of the site."""

RESULT_PAGE, RESULTS = "result-files", ROOT / "benchmarks"

_FOLDERS = {DOCS: "index", ROOT: "overview", ROOT / "training": "training", ROOT / "examples": "examples"}
_PAGES = {file: page for page, file in SHOWN.items()} | _FOLDERS

# Blocks and code come first, so that a link within them is left alone.
_LINK = re.compile(
    r"(?P<code>^ *(?P<fence>`{3,}).*?^ *(?P=fence)$|`[^`\n]*`(?!\]\())"
    r"|(?P<image>!?)\[(?P<text>(?:!\[[^\]]*\]\([^)]*\)|[^\[\]])*)\]\((?P<path>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)",
    flags=re.MULTILINE | re.DOTALL,
)


def setup(site: Sphinx) -> dict[str, bool]:
    site.connect("source-read", _read)
    return {"parallel_read_safe": True}


def _read(site: Sphinx, page: str, source: list[str]) -> None:
    folder = (DOCS / page).parent
    if page in SHOWN:
        source[0] = links_on_the_site(SHOWN[page].read_text(encoding="utf-8"), SHOWN[page].parent, folder)
        return
    source[0] = links_on_the_site(source[0], folder, folder)
    if page == RESULT_PAGE:
        # docs/conf.py writes it.
        source[0] += '\nAs tables and charts: <a href="report.html">the report</a> of two of them.\n\n'
        source[0] += links_on_the_site(result_files(), ROOT, folder)


def links_on_the_site(text: str, folder: Path, page_folder: Path) -> str:
    """The text with links that lead somewhere on the site.

    Args:
        text: Markdown.
        folder: where its links start from.
        page_folder: where the page is that it is shown on.
    """
    return _LINK.sub(_link(folder, page_folder), text)


def _link(folder: Path, page_folder: Path) -> Callable[[re.Match[str]], str]:
    def on_the_site(link: re.Match[str]) -> str:
        path, anchor = link["path"], link["anchor"] or ""
        if link["code"] or not path or "://" in path or path.startswith("mailto:"):
            return link[0]
        target = (folder / path).resolve()
        if target in _PAGES:
            target = DOCS / f"{_PAGES[target]}.md"
        elif target.is_dir() and target.is_relative_to(RESULTS):
            target, anchor = DOCS / f"{RESULT_PAGE}.md", "#" + "".join(target.relative_to(ROOT).parts)
        elif target.is_dir():
            return link["text"]
        relative = Path(os.path.relpath(target, page_folder)).as_posix()
        return f"{link['image']}[{link['text']}]({relative}{anchor})"

    return on_the_site


def result_files() -> str:
    """The result files by their folders, each with the command that made it where the file says."""
    folders = sorted({file.parent for file in RESULTS.rglob("*.json*")})
    return "\n".join(line for folder in folders for line in _result_folder(folder))


def _result_folder(folder: Path) -> Iterator[str]:
    yield from (f"## {folder.relative_to(ROOT).as_posix()}", "", "| file | made by |", "|---|---|")
    for file in sorted(folder.glob("*.json*")):
        command = json.loads(read_json_text(file, "result")).get("command")
        yield f"| [{file.name}]({file.relative_to(ROOT).as_posix()}) | {f'`{command}`' if command else ''} |"
    yield ""
