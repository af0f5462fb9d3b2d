"""The figures of the page on batches."""

from __future__ import annotations

import json

import pytest

from benchmarks import tables
from benchmarks.batch_table import batch_costs, batch_tried, cost_of_thousand, images_per_hour
from DeepCache.report.published import PUBLISHED

MEASURED = json.loads((tables.HERE / "sd15_512_cpu.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made() -> str:
    return batch_costs(MEASURED)


def cells(text: str, head: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(head)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_images_per_hour():
    assert images_per_hour(8, 16.0) == 1800
    assert images_per_hour(1, 3600) == 1


def test_cost_of_a_thousand_images():
    assert cost_of_thousand(8, 16.0, price=0.9) == pytest.approx(0.9 * 1000 * 16 / 8 / 3600)


def test_every_published_row_is_there(made):
    published = made.split("**Measured by us.**")[0]
    rows = [line for line in published.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) == len(PUBLISHED) == 9


def test_a_published_row_by_hand(made):
    # 15.96, 6.88, 5.03 and 7.27 seconds for a batch of 8.
    assert cells(made, "| 512 | 8 |") == ["512", "8", "1,805 (0.55)", "4,186 (0.24)", "5,726 (0.17)", "3,961 (0.25)"]


def test_what_we_measured_is_that_of_the_whole_pipeline(made):
    (cell,) = [cell for cell in MEASURED["cells"] if cell["scope"] == "pipeline"]
    plain = cell["rows"][0]["median"]
    assert cells(made, "| no caching |")[1:3] == [f"{plain:.1f}", f"{3600 / plain:.0f}"]
    ours = made.split("**Measured by us.**")[1]
    assert [line.split(" | ")[0] for line in ours.splitlines() if "B=" in line] == [
        "| I=3 B=0",
        "| I=5 B=0",
        "| I=5 B=1",
    ]


def test_measured_runs_are_described():
    stress = {
        "faults_injected": 7,
        "by_kind": {"kill": 4, "full disk": 3},
        "rounds": {"local": 2, "ray": 1},
        "rows": 1234,
        "rows_lost": 5,
        "rows_twice": 6,
    }
    runs = [
        {
            "engine": engine,
            "rows": rows,
            "per_second": rows / 10,
            "driver": {"growth_drawing_mib": rows / 1000, "at_the_last_row_mib": 100.0, "at_the_end_mib": 109.0},
        }
        for engine in ("local", "ray")
        for rows in (10_000, 100_000)
    ]
    text = batch_tried(stress, {"runs": runs})
    assert "7 faults of 2 kinds" in text
    assert "in 3 jobs of 1,234 rows: 5 rows lost, 6 generated twice" in text
    assert text.count("10,000 rows a second, and the driver grows by 100 MiB") == 2
    assert text.count("10 MiB from the 2,000th") == 2
    assert "takes 9 MiB and 9 MiB more" in text
