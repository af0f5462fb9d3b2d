from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from DeepCache.report import write_report
from tests.report.reading import Element, parse
from tests.report.synthetic_results import write


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Element]:
    """Makes the page of results, and reads it."""

    def report(*results: dict[str, Any], **options: Any) -> Element:
        folder = tmp_path_factory.mktemp("report")
        paths = [write(result, folder / f"result-{number}.json") for number, result in enumerate(results, start=1)]
        page = write_report(paths, folder / "report.html", **options)
        return parse(page.read_text(encoding="utf-8"))

    return report
