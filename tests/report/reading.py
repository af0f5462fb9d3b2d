"""Reads a page of HTML: its elements, and its tables as rows and columns."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}


@dataclass
class Element:
    """An element of a page."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Element | str] = field(default_factory=list)

    def all(self, *tags: str) -> list[Element]:
        """The elements below with one of these tags, or all, in the order of the page."""
        return [element for element in self._below() if not tags or element.tag in tags]

    def by_id(self, name: str) -> Element:
        """The element below with this id."""
        return next(element for element in self._below() if element.attributes.get("id") == name)

    @property
    def text(self) -> str:
        """The text, with single blanks."""
        parts = [child if isinstance(child, str) else f" {child.text} " for child in self.children]
        return " ".join("".join(parts).split())

    def _below(self) -> Iterator[Element]:
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child._below()


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("root")
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in _VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> where <{self.open[-1].tag}> is open"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(text: str) -> Element:
    """The page; elements that are not closed in their order fail."""
    parser = _Parser()
    parser.feed(text)
    parser.close()
    assert parser.open == [parser.root]
    return parser.root


def charts(page: Element) -> dict[str, list[str]]:
    """The words of every chart, by the title of the chart."""
    found = {}
    for image in page.all("img"):
        kind, _, data = image.attributes["src"].partition(";base64,")
        if kind == "data:image/svg+xml":
            svg = parse(base64.b64decode(data).decode())
            found[image.attributes["alt"].partition(". ")[0]] = [text.text for text in svg.all("text")]
    return found


def rows(table: Element) -> list[list[str]]:
    """The text of every row of the bodies, cell by cell; a cell that spans several is in each of them."""
    found: list[list[str]] = []
    for body in table.all("tbody"):
        found += _grid(body)
    return found


def columns(table: Element) -> list[str]:
    """The heading of every column, with what stands above it."""
    (head,) = table.all("thead")
    lines = _grid(head)
    return [" / ".join(dict.fromkeys(line[number] for line in lines)) for number in range(len(lines[0]))]


def _grid(part: Element) -> list[list[str]]:
    grid: dict[tuple[int, int], str] = {}
    lines = part.all("tr")
    for number, line in enumerate(lines):
        column = 0
        for cell in line.all("th", "td"):
            while (number, column) in grid:
                column += 1
            wide, high = (int(cell.attributes.get(name, "1")) for name in ("colspan", "rowspan"))
            for below in range(high):
                for right in range(wide):
                    assert (number + below, column + right) not in grid
                    grid[number + below, column + right] = cell.text
            column += wide
    width = 1 + max(column for _, column in grid)
    assert set(grid) == {(line, column) for line in range(len(lines)) for column in range(width)}
    return [[grid[line, column] for column in range(width)] for line in range(len(lines))]


def is_written_as(value: float, text: str) -> bool:
    """Whether a number was written as this, correctly rounded and with three digits or more."""
    decimals = len(text.partition(".")[2])
    return abs(float(text) - value) <= 0.500001 * 10**-decimals and len(text.replace(".", "").lstrip("0")) >= 3
