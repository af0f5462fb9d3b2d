"""Charts: drawn once, shown as inline SVG in the colours of the page, or as a picture."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DEEPCACHE", "FEWER_STEPS", "INK", "REFERENCE", "WIDTH", "Chart", "new_figure"]

# Okabe and Ito's colours, which people who see few colours tell apart.
DEEPCACHE, REFERENCE, FEWER_STEPS = "#0072b2", "#009e73", "#d55e00"
INK = "#0d0e0f"
"""Text, axes and outlines."""

WIDTH = 360
"""Width of a chart, in the pixels of a phone: what is legible there is so everywhere."""

# The page has a colour of its own for each, in light and in dark.
_IN_THE_PAGE = {
    DEEPCACHE: "var(--deepcache)",
    REFERENCE: "var(--reference)",
    FEWER_STEPS: "var(--fewer-steps)",
    INK: "currentColor",
}
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "hatch.color": INK,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "text.color": INK,
    # Names of settings are no formulas.
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "DeepCache",
}
# Without these, matplotlib notes the date and itself.
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class Chart:
    """A chart, and what it shows in words.

    Args:
        name: a name for its file; unique among the charts of a report.
        title: what it is called.
        description: what there is to see, for those who do not.
        draw: draws it.
    """

    name: str
    title: str
    description: str
    draw: Callable[[], Figure]

    def svg(self) -> str:
        """An `svg` element: on a transparent background, in the colours of the page around it."""
        buffer = io.StringIO()
        with _house_style():
            self.draw().savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
        return self._for_the_page(buffer.getvalue())

    def png(self) -> bytes:
        """A picture on white, two pixels to each of the page."""
        buffer = io.BytesIO()
        with _house_style():
            self.draw().savefig(buffer, format="png", dpi=144, facecolor="white", metadata={"Software": None})
        return buffer.getvalue()

    def _for_the_page(self, text: str) -> str:
        view_box = re.search(r'viewBox="[^"]*"', text)
        assert view_box is not None
        body = text[text.index(">", view_box.end()) + 1 : text.rindex("</svg>")]
        body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
        # The font is the page's.
        body = re.sub(r" font-family: [^;\"]*;", "", body)
        body = re.sub(r" transform=\"rotate\(-?0 [^\"]*\"", "", body)
        for colour, variable in _IN_THE_PAGE.items():
            body = body.replace(colour, variable)
        # Every chart calls its parts the same; those that nothing refers to go without a name.
        used = set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", body))
        for first, second in sorted(used):
            old = first or second
            body = body.replace(f'id="{old}"', f'id="{self.name}-{old}"')
            body = body.replace(f"url(#{old})", f"url(#{self.name}-{old})")
            body = body.replace(f'href="#{old}"', f'href="#{self.name}-{old}"')
        body = re.sub(rf' id="(?!{re.escape(self.name)}-)[^"]*"', "", body)
        body = re.sub(r">\s+<", ">\n<", body.replace("xlink:href", "href"))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {view_box.group()} role="img" '
            f'aria-labelledby="{self.name}-title {self.name}-description">'
            f'<title id="{self.name}-title">{escape(self.title)}</title>'
            f'<desc id="{self.name}-description">{escape(self.description)}</desc>{body}</svg>'
        )


def new_figure(height: float, **layout: Any) -> Figure:
    """A figure of the width of all charts.

    Args:
        height: in pixels.
        layout: padding of the layout, as matplotlib's `ConstrainedLayoutEngine` takes it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(WIDTH / 72, height / 72), layout=ConstrainedLayoutEngine(**layout))


@contextmanager
def _house_style() -> Iterator[None]:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("drawing charts takes matplotlib: pip install 'DeepCache[report]'") from error
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A name in letters that matplotlib's font lacks; the page has them.
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
        yield
