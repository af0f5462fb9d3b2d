"""The page: the templates, filled in."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

from DeepCache.report.facts import facts, overview
from DeepCache.report.fidelity import fidelity_groups
from DeepCache.report.findings import finding
from DeepCache.report.frontier_chart import frontier_chart
from DeepCache.report.gallery import AMPLIFIED, gallery
from DeepCache.report.heat_map import heat_map_charts
from DeepCache.report.numerals import confidence, decibels, gain, of_range, per_cent, seconds, times
from DeepCache.report.published import PUBLISHED_ON, PUBLISHED_PAGE, PUBLISHED_STEPS
from DeepCache.report.sources import Source
from DeepCache.report.speed import speed_tables
from DeepCache.report.speed_chart import speed_charts
from DeepCache.report.verdicts import verdicts
from DeepCache.text import format_bytes

__all__ = ["render_page"]

_FILTERS: tuple[Callable[..., str], ...] = (
    format_bytes,
    confidence,
    decibels,
    gain,
    of_range,
    per_cent,
    seconds,
    times,
)


def render_page(sources: Sequence[Source], title: str) -> str:
    """The HTML of a report.

    Args:
        sources: the results, each of which gets a section.
        title: the heading.

    Raises:
        ImportError: jinja2 or matplotlib is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ImportError("writing a report takes jinja2: pip install 'DeepCache[report]'") from error

    environment = Environment(
        loader=PackageLoader("DeepCache.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {function.__name__: _or_dash(function) for function in _FILTERS}
    # Speed before fidelity, as people ask.
    ordered = sorted(sources, key=lambda source: not source.is_benchmark)
    from DeepCache import __version__

    return environment.get_template("page.html").render(
        title=title,
        style=(files("DeepCache.report") / "templates" / "page.css").read_text(encoding="utf-8"),
        sections=[_section(source, f"result-{number}") for number, source in enumerate(ordered, start=1)],
        version=__version__,
        amplified=AMPLIFIED,
        published_on=PUBLISHED_ON,
        published_page=PUBLISHED_PAGE,
        published_steps=PUBLISHED_STEPS,
    )


def _section(source: Source, name: str) -> dict[str, Any]:
    """What the template shows of a result."""
    what = "Speed" if source.is_benchmark else "Fidelity and cost"
    section = {
        "id": name,
        "heading": f"{what}: {source.model} on {source.device}",
        "source": source,
        "overview": overview(source),
        "facts": facts(source),
        "finding": finding(source),
        "command": source.result["command"],
        "left_out": source.result["settings"].get("left_out", {}),
        "data": base64.b64encode(source.content.encode()).decode(),
        "tables": [],
        "groups": [],
    }
    if source.is_benchmark:
        tables = enumerate(speed_tables(source), start=1)
        section["tables"] = [
            {
                "id": f"{name}-{number}",
                "title": table.title,
                "table": table,
                "charts": speed_charts(table, f"{name}-{number}"),
            }
            for number, table in tables
        ]
    else:
        groups = fidelity_groups(source)
        several = len(source.result["settings"]["guidances"]) > 1
        # Each scale has its heading, above the first group of it.
        begins = {group.guidance: number for number, group in reversed(list(enumerate(groups, start=1)))}
        section["groups"] = [
            {
                "id": f"{name}-{number}",
                "title": group.title,
                "group": group,
                "level": 4 if several else 3,
                "begins": f"Guidance {group.guidance:g}" if several and begins[group.guidance] == number else "",
                "verdicts": verdicts(group),
                "frontier": frontier_chart(group, f"{name}-{number}-frontier"),
                "maps": heat_map_charts(group, f"{name}-{number}"),
                "gallery": gallery(source, group),
            }
            for number, group in enumerate(groups, start=1)
        ]
    return section


def _or_dash(write: Callable[..., str]) -> Callable[..., str]:
    """Writes a dash where there is no number."""
    return lambda value, *how: "–" if value is None else write(value, *how)
