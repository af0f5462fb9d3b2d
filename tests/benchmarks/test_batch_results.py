"""The committed results of batches: no row is lost or generated twice, and memory is flat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
# What a run with ten times the rows may have more, and what the rows from 20 % on may add, in MiB: far less than they
# would take in memory.
MOST_MORE, MOST_GROWTH = 64, 48
FAULTS = {
    "kill",
    "kill all",
    "kill -9 of a worker",
    "kill -9 of the read task",
    "kill -9 of the feed",
    "kill -9 of the raylet",
    "kill -9 of the driver",
    "kill -9 of the whole tree",
    "SIGINT",
    "SIGINT of the group",
    "SIGTERM",
    "full disk",
    "exception",
    "picture truncated",
    "picture emptied",
    "partial file left",
}
MOMENTS = {
    f"{name} {when}"
    for name in ("picture", "journal", "manifest", "job")
    for when in ("half written", "before rename", "after rename")
}


def read(name):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def stress():
    return read("batch_stress.json")


@pytest.fixture(scope="module")
def runs():
    return {(run["engine"], run["rows"]): run for run in read("batch_memory.json")["runs"]}


def test_no_row_is_lost_or_generated_twice(stress):
    assert (stress["rows_lost"], stress["rows_twice"], stress["wrong"]) == (0, 0, [])
    assert stress["rows"] == stress["pictures"] + stress["bad_rows"] > 0


def test_every_kind_of_fault_came_at_every_moment_with_both_engines(stress):
    assert stress["faults_injected"] == sum(fault["number"] for fault in stress["faults"]) >= 200
    assert {fault["kind"] for fault in stress["faults"]} == FAULTS
    for engine in ("local", "ray"):
        assert {fault["stage"] for fault in stress["faults"] if fault["engine"] == engine} >= MOMENTS


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_memory_does_not_grow_with_the_rows(runs, engine):
    some, many = (runs[engine, rows]["driver"] for rows in (10_000, 100_000))
    assert many["growth_drawing_mib"] < MOST_GROWTH
    assert many["peak_mib"] - some["peak_mib"] < MOST_MORE
    assert many["peak_mib"] < 512


def test_memory_of_all_of_ray_does_not_grow_with_the_rows(runs):
    assert runs["ray", 100_000]["tree"]["growth_drawing_mib"] < 256
