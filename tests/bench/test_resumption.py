"""A benchmark that was stopped, anywhere, goes on and loses nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import chain, count

import pytest

from DeepCache.bench import benchmark
from DeepCache.bench.benchmark import BenchmarkSettings, _Stop, is_complete, run_benchmark
from DeepCache.bench.clock import Timing
from DeepCache.bench.result_file import write_result
from DeepCache.bench.variants import parse_variant
from DeepCache.engine.cost import Costs
from tests.bench.fake_clock import TICK
from tests.bench.small_models import unconditional_pipeline

ROUNDS, WARM_UP, CASES = 2, 1, 3
SETTINGS = BenchmarkSettings(
    "some model",
    (parse_variant("I=2"),),
    batches=(1, 2),
    steps=2,
    rounds=ROUNDS,
    warm_up=WARM_UP,
    scopes=("unet",),
)
# Two cells.
ALL_RUNS = 2 * (ROUNDS + WARM_UP) * CASES


@pytest.fixture(autouse=True)
def _small(model, monkeypatch):
    model(unconditional_pipeline)
    # Fewer steps are then one step of two.
    monkeypatch.setattr(benchmark, "count_costs", lambda *_: Costs(1000, {0: 0}, {0: 8}))


def on_disk(path):
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def without_figures(result):
    """What does not depend on the clock, and how many timings there are."""
    changing = ("median", "spread", "speed_up", "speed_up_spread", "share_of_limit")
    cells = []
    for cell in result["cells"]:
        rows = []
        for row in cell["rows"]:
            assert row["first_seconds"] is not None
            kept = {name: value for name, value in row.items() if name not in changing}
            rows.append(kept | {"seconds": len(row["seconds"]), "first_seconds": None})
        cells.append(cell | {"rows": rows})
    return result | {"cells": cells, "date": "", "command": ""}


def timings(result):
    return [row["seconds"] for cell in result["cells"] for row in cell["rows"]]


def still_to_run(result):
    """Runs that a file leaves to be made."""
    if result is None:
        return ALL_RUNS
    left = 0
    for cell in result["cells"]:
        if cell["status"] in ("waiting", "partial"):
            done = len(cell["rows"][0]["seconds"]) if cell["rows"] else 0
            left += (WARM_UP + ROUNDS - done) * CASES
    return left


def check_nothing_lost(before, after):
    """Everything the file had is still there, in its place."""
    if before is None:
        return
    for old, new in zip(before["cells"], after["cells"], strict=True):
        for old_row, new_row in zip(old["rows"], new["rows"], strict=bool(old["rows"])):
            assert new_row["seconds"][: len(old_row["seconds"])] == old_row["seconds"]
            assert new_row["first_seconds"] == old_row["first_seconds"]
            assert [new_row[name] for name in ("method", "variant", "pattern", "mac_share", "bytes_kept")] == [
                old_row[name] for name in ("method", "variant", "pattern", "mac_share", "bytes_kept")
            ]


def check_finished(result):
    assert is_complete(result)
    assert {cell["status"] for cell in result["cells"]} == {"done"}
    seconds = timings(result)
    assert [len(row) for row in seconds] == [ROUNDS] * (2 * CASES)
    flat = [value for row in seconds for value in row]
    assert len(set(flat)) == len(flat)


@pytest.fixture(scope="module")
def never_stopped():
    """The same for all tests; made by the first."""
    return {}


def whole(never_stopped, clock, tmp_path):
    if not never_stopped:
        ran = clock(only_first=True)
        never_stopped.update(run_benchmark(SETTINGS, tmp_path / "whole.json", "cpu"))
        check_finished(never_stopped)
        assert len(ran.ran) == ALL_RUNS
    return without_figures(never_stopped)


@pytest.mark.parametrize("stop_at", range(1, ALL_RUNS + 1))
def test_ctrl_c_in_any_run_loses_no_round(stop_at, never_stopped, clock, tmp_path):
    path = tmp_path / "benchmark.json"
    ran = clock(stop_at, only_first=True)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(SETTINGS, path, "cpu")
    assert len(ran.ran) == stop_at - 1
    before = on_disk(path)
    # The rounds that were whole are in the file, less those to warm up.
    rounds = (stop_at - 1) // CASES
    measured = max(0, rounds - WARM_UP) if rounds < 3 else ROUNDS + max(0, rounds - 3 - WARM_UP)
    assert sum(len(row) for row in timings(before)) == measured * CASES if before else measured == 0
    again = clock(only_first=True)
    after = run_benchmark(SETTINGS, path, "cpu")
    assert on_disk(path) == after
    assert len(again.ran) == still_to_run(before)
    check_finished(after)
    check_nothing_lost(before, after)
    assert set(chain(*timings(after))) <= set(ran.seconds + again.seconds)
    assert without_figures(after) == whole(never_stopped, clock, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if "whole" not in path.name] == ["benchmark.json"]


@pytest.mark.parametrize("when", ["before", "in", "after"])
@pytest.mark.parametrize("write", range(1, 2 * ROUNDS + 1))
def test_a_crash_around_any_write_loses_no_round(write, when, never_stopped, clock, tmp_path, monkeypatch):
    path = tmp_path / "benchmark.json"
    written = count(1)

    def crash(path, result):
        if next(written) != write:
            write_result(path, result)
            return
        if when == "in":
            path.with_name(f".{path.name}.partial").write_text('{"format": "Deep')
        if when == "after":
            write_result(path, result)
        raise KeyboardInterrupt

    clock(only_first=True)
    with monkeypatch.context() as patched:
        patched.setattr(benchmark, "write_result", crash)
        with pytest.raises(KeyboardInterrupt):
            run_benchmark(SETTINGS, path, "cpu")
    before = on_disk(path)
    again = clock(only_first=True)
    after = run_benchmark(SETTINGS, path, "cpu")
    assert len(again.ran) == still_to_run(before)
    check_finished(after)
    check_nothing_lost(before, after)
    assert without_figures(after) == whole(never_stopped, clock, tmp_path)


def test_a_run_that_is_stopped_repeatedly_finishes(never_stopped, clock, tmp_path):
    path = tmp_path / "benchmark.json"
    befores = []
    # Enough for the warm-up and one round, and then a little more.
    for stop_at in (8, 9, 7, 5):
        clock(stop_at, only_first=True)
        with pytest.raises(KeyboardInterrupt):
            run_benchmark(SETTINGS, path, "cpu")
        befores.append(on_disk(path))
    clock(only_first=True)
    after = run_benchmark(SETTINGS, path, "cpu")
    check_finished(after)
    for before in befores:
        check_nothing_lost(before, after)
    assert without_figures(after) == whole(never_stopped, clock, tmp_path)


def test_a_case_that_failed_before_the_stop_is_not_retried(clock, tmp_path, model):
    def refusing():
        pipe = unconditional_pipeline()

        def refuse(unet, args):
            if "_deepcache_engine" in unet.__dict__:
                raise ValueError("not me")

        pipe.unet.register_forward_pre_hook(refuse)
        return pipe

    model(refusing)
    path = tmp_path / "benchmark.json"
    # Two cases run, and after two rounds and one run it is stopped.
    clock(2 * 2 + 2, only_first=True)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(SETTINGS, path, "cpu")
    before = on_disk(path)
    assert [row["error"] for row in before["cells"][0]["rows"]] == ["", "not me", ""]
    again = clock(only_first=True)
    after = run_benchmark(SETTINGS, path, "cpu")
    check_nothing_lost(before, after)
    assert [len(row) for row in timings(after)] == [ROUNDS, 0, ROUNDS] * 2
    assert {cell["status"] for cell in after["cells"]} == {"done"}
    # In the first cell, the warm-up and the round that is missing; the second as a whole.
    assert len(again.ran) == 2 * 2 + 3 * 2


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"steps": 3}, "settings.steps is 2 there and 3 now"),
        ({"rounds": 3}, "settings.rounds is 2 there and 3 now"),
        ({"batches": (1, 4)}, r"settings.grid.batches is \[1, 2\] there and \[1, 4\] now"),
        ({"seed": 1}, "seed is 0 there and 1 now"),
        ({"variants": (parse_variant("I=3"),)}, "settings.variants.I=3 B=0 is null there"),
        ({"fewer_steps": False}, "settings.fewer_steps is true there and false now"),
        ({"scheduler": "ddpm"}, 'settings.scheduler is "DDIMScheduler" there and "DDPMScheduler" now'),
    ],
)
def test_other_settings_do_not_resume_the_file(changed, words, clock, tmp_path):
    path = tmp_path / "benchmark.json"
    clock(8, only_first=True)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(SETTINGS, path, "cpu")
    before = path.read_bytes()
    ran = clock()
    with pytest.raises(ValueError, match=words):
        run_benchmark(replace(SETTINGS, **changed), path, "cpu")
    assert ran.ran == []
    assert path.read_bytes() == before


@pytest.fixture
def hours(monkeypatch):
    """Time that passes in runs alone: a run takes a second."""

    def put(clock):
        monkeypatch.setattr(benchmark, "monotonic", lambda: float(len(clock.ran)))
        monkeypatch.setattr(benchmark, "_Stop", partial(_Stop, begin=0.0))
        return clock

    return put


@pytest.mark.parametrize(
    ("seconds", "measured"),
    [
        # One round of three runs, after one to warm up, is measured regardless of the limit.
        (0.001, [1, 0]),
        (6, [1, 0]),
        (8.9, [1, 0]),
        (9, [2, 0]),
        # The second cell begins, but not its first round after the warm-up.
        (10, [2, 0]),
        (14.9, [2, 0]),
        (15, [2, 1]),
        (18, [2, 2]),
        (1000, [2, 2]),
    ],
)
def test_no_round_starts_that_would_end_too_late_but_one_is_always_measured(
    seconds, measured, hours, never_stopped, clock, tmp_path
):
    path = tmp_path / "benchmark.json"
    hours(clock(only_first=True))
    before = run_benchmark(SETTINGS, path, "cpu", stop_after=seconds)
    assert [len(cell["rows"][0]["seconds"]) if cell["rows"] else 0 for cell in before["cells"]] == measured
    assert is_complete(before) is (measured == [2, 2])
    on_the_disk = on_disk(path)
    assert timings(on_the_disk) == [row for row in timings(before) if row]
    clock(only_first=True)
    after = run_benchmark(SETTINGS, path, "cpu")
    check_finished(after)
    check_nothing_lost(on_the_disk, after)
    assert without_figures(after) == whole(never_stopped, clock, tmp_path)


# Importing the compiler.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_compile_time_is_not_expected_of_later_rounds(tmp_path, monkeypatch):
    # The first run of each case compiles.
    takes = chain([100.0] * CASES, [1.0] * ROUNDS * CASES)
    now = 0.0

    def timed(run, device):
        nonlocal now
        now += next(takes)
        return Timing(now, None)

    monkeypatch.setattr(benchmark, "timed", timed)
    monkeypatch.setattr(benchmark, "monotonic", lambda: now)
    monkeypatch.setattr(benchmark, "_Stop", partial(_Stop, begin=0.0))
    settings = replace(SETTINGS, modes=("compiled",), batches=(1,))
    assert is_complete(run_benchmark(settings, tmp_path / "benchmark.json", "cpu", stop_after=310))


def test_repeated_runs_with_a_short_time_limit_finish(hours, clock, tmp_path):
    path = tmp_path / "benchmark.json"
    for turn in range(1, 2 * ROUNDS + 1):
        hours(clock(only_first=True))
        result = run_benchmark(SETTINGS, path, "cpu", stop_after=TICK)
        # A round each time.
        assert is_complete(result) is (turn == 2 * ROUNDS)
    check_finished(on_disk(path))
