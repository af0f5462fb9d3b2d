"""A report: one page of HTML that loads nothing else."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from DeepCache.files import write_atomically
from DeepCache.report.charts import frontier_chart, speed_charts
from DeepCache.report.fidelity import FidelityGroup, fidelity_groups, unfinished_groups
from DeepCache.report.findings import headline, verdicts
from DeepCache.report.gallery import AMPLIFIED, gallery, shown
from DeepCache.report.html import data_uri, render
from DeepCache.report.published import PUBLISHED_ON, PUBLISHED_PAGE, PUBLISHED_STEPS
from DeepCache.report.sources import Source, read_sources
from DeepCache.report.speed import SpeedTable, speed_tables, unfinished_cells
from DeepCache.report.tables import fidelity_table, measurements_table, speed_table

__all__ = ["default_title", "write_report"]

_LARGE = 100_000  # result files of more bytes are compressed in the page
_SHOWN_ELSEWHERE = ("labels", "variants", "left_out", "samples", "reference", "fewer_steps")


def write_report(
    paths: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str], *, title: str | None = None
) -> Path:
    """Writes a page with the results of benchmarks and ablations: headline numbers, tables, charts, sample images, and
    the result files themselves.

    The page loads nothing from the network or from other files. It is written completely or not at all, and replaces
    an existing file.

    Args:
        paths: results of `deepcache benchmark` and `deepcache ablate`, of one or several models, finished or not.
        output: the page, an HTML file.
        title: the heading; defaults to the models.

    Returns:
        The path of the page.

    Raises:
        ValueError: there are no results, one is given twice, or one is not a result.
        OSError: a result cannot be read, or the page cannot be written.
        ImportError: jinja2, jsonschema or matplotlib is not installed.

    Example:
        >>> from DeepCache.bench.benchmark import BenchmarkSettings, run_benchmark
        >>> settings = BenchmarkSettings(steps=6, rounds=1, warm_up=0, scopes=("unet",), fewer_steps=False)
        >>> _ = run_benchmark(settings, Path("benchmark.json"), device="cpu")
        >>> print(write_report(["benchmark.json"], "report.html"))
        report.html
    """
    path, results = Path(output), [Path(each) for each in paths]
    if path.is_dir():
        raise IsADirectoryError(f"the report {str(path)!r} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} for the report {str(path)!r}")
    if path.resolve() in [result.resolve() for result in results]:
        raise ValueError(f"the report {str(path)!r} is one of the results; give it another name")
    sources = read_sources(results)
    page = render_page(sources, title if title is not None else default_title(sources))
    write_atomically(path, page)
    return path


def default_title(sources: Sequence[Source]) -> str:
    """The heading of a report without a title."""
    return "DeepCache on " + ", ".join(dict.fromkeys(source.model for source in sources))


def render_page(sources: Sequence[Source], title: str) -> str:
    """The HTML of a report."""
    from DeepCache import __version__

    # Speed before fidelity.
    ordered = sorted(sources, key=lambda source: not source.is_benchmark)
    sections = [_section(source, f"result-{number}") for number, source in enumerate(ordered, start=1)]
    charts = [chart for section in reversed(sections) for part in section["parts"] for chart in part["charts"]]
    return render(
        "page.html",
        title=title,
        sections=sections,
        chart=charts[0] if charts else None,
        version=__version__,
        amplified=AMPLIFIED,
        shown=shown,
        published=(PUBLISHED_ON, PUBLISHED_PAGE, PUBLISHED_STEPS),
    )


def _section(source: Source, name: str) -> dict[str, Any]:
    """The values that the templates show of a result."""
    kind = "Speed" if source.is_benchmark else "Fidelity and cost"
    if source.is_benchmark:
        parts = [_speed_part(table) for table in speed_tables(source)]
        unfinished, total = unfinished_cells(source), f"{len(source.result['cells'])} cells"
    else:
        parts = [_fidelity_part(source, group) for group in fidelity_groups(source)]
        unfinished, total = unfinished_groups(source), f"{len(parts)} groups"
    file, data = source.name, source.content.encode()
    if len(data) > _LARGE and not file.endswith(".gz"):
        file += ".gz"
    compressed = file.endswith(".gz")
    return {
        "id": name,
        "heading": f"{kind}: {source.model} on {source.device}",
        "headline": headline(source),
        "unfinished": f"{unfinished} of {total}" if unfinished else "",
        "facts": _facts(source.result),
        "command": source.result["command"],
        "omitted": source.result["settings"].get("left_out", {}),
        "file": file,
        "data": data_uri(gzip.compress(data, mtime=0), "application/gzip")
        if compressed
        else data_uri(data, "application/json"),
        "parts": [{"id": f"{name}-{number}", **part} for number, part in enumerate(parts, start=1)],
    }


def _speed_part(table: SpeedTable) -> dict[str, Any]:
    measured = any(table.measured(variant.name) for variant in table.variants)
    return {
        "template": "speed.html",
        "title": table.title,
        "table": table,
        "tables": [speed_table(table), measurements_table(table)][: 1 + measured],
        "charts": speed_charts(table),
        "published": any(variant.published for variant in table.variants),
    }


def _fidelity_part(source: Source, group: FidelityGroup) -> dict[str, Any]:
    front = "The Pareto front, numbered as in the chart: nothing measured is closer at the same cost or less."
    chart = frontier_chart(group)
    dominated = [cell for cell in group.cells if not cell["front"]]
    title = "The other settings, from the cheapest, with the gain of the best setting at the same cost or less."
    return {
        "template": "fidelity.html",
        "title": group.title,
        "group": group,
        "tables": [fidelity_table(group, front, group.front)] if group.front else [],
        "more": fidelity_table(group, title, dominated, brief=True) if dominated else None,
        "charts": [] if chart is None else [chart],
        "verdicts": verdicts(group),
        "maps": [each for each in group.heat_maps if len(each.intervals) > 1 and len(each.branches) > 1],
        "gallery": gallery(source, group),
    }


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The conditions of a result: names and values."""
    settings = {key: value for key, value in result["settings"].items() if key not in _SHOWN_ELSEWHERE}
    grid = settings.pop("grid", {})
    facts = {**settings, **grid, "prompts": len(settings.get("prompts", ())) or None}
    facts |= {key: result[key] for key in ("device", "machine", "versions")} | {"date": _date(result["date"])}
    return [(key.replace("_", " "), _text(value)) for key, value in facts.items() if value not in (None, [None])]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        named = {key.replace("_", " "): each for key, each in value.items() if each is not None}
        return ", ".join(f"{key} {_text(each)}" for key, each in named.items())
    if isinstance(value, list):
        return ", ".join("×".join(map(str, each)) if isinstance(each, list) else _text(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _date(date: str) -> str:
    """A date of ISO 8601 in UTC; anything else as it is."""
    try:
        found = datetime.fromisoformat(date)
    except ValueError:
        return date
    return found.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M UTC") if found.tzinfo is not None else date
