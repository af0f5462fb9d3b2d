"""A report is written: one page of HTML that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from DeepCache.files import write_atomically
from DeepCache.report.page import render_page
from DeepCache.report.sources import Source, read_sources

__all__ = ["check_output", "default_title", "write_report"]


def write_report(
    paths: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str], *, title: str | None = None
) -> Path:
    """Writes a page with everything that result files hold: tables, charts, sample images and the files themselves.

    The page needs no network and no other file. It is written as a whole or not at all, and what is there already is
    replaced.

    Args:
        paths: results of `deepcache benchmark` and `deepcache ablate`, of one or several models, finished or not.
        output: the page, an HTML file.
        title: the heading; the models by default.

    Returns:
        The path of the page.

    Raises:
        ValueError: there is no result, one is given twice, or one is no result.
        OSError: a result cannot be read, or the page not be written.
        ImportError: jinja2, jsonschema or matplotlib is not installed.

    Example:
        >>> from DeepCache.bench.benchmark import BenchmarkSettings, run_benchmark
        >>> settings = BenchmarkSettings(steps=6, rounds=1, warm_up=0, scopes=("unet",), fewer_steps=False)
        >>> _ = run_benchmark(settings, Path("benchmark.json"), device="cpu")
        >>> print(write_report(["benchmark.json"], "report.html"))
        report.html
    """
    path = Path(output)
    check_output(path, [Path(each) for each in paths])
    sources = read_sources([Path(each) for each in paths])
    page = render_page(sources, title if title is not None else default_title(sources))
    write_atomically(path, page)
    return path


def check_output(output: Path, paths: Sequence[Path]) -> None:
    """Refuses a page that could not be written, before anything is read.

    Raises:
        OSError: it is a folder, or its folder is not there.
        ValueError: it is one of the results.
    """
    if output.is_dir():
        raise IsADirectoryError(f"the report {str(output)!r} is a folder; give the name of a file")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(output.parent)!r} for the report {str(output)!r}")
    if output.resolve() in [path.resolve() for path in paths]:
        raise ValueError(f"the report {str(output)!r} is one of the results; give it another name")


def default_title(sources: Sequence[Source]) -> str:
    """The heading of a report that was given none."""
    return "DeepCache on " + ", ".join(dict.fromkeys(source.model for source in sources))
