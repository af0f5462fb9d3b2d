"""`deepcache benchmark`, from the command line to the result file."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest
import torch

from benchmarks.harness.reference_package import FOLDER
from DeepCache.bench import benchmark, profiles
from DeepCache.bench.benchmark import BenchmarkSettings
from DeepCache.bench.result_file import read_result
from DeepCache.bench.variants import PUBLISHED_VARIANTS, parse_variant
from tests.bench.fake_clock import FakeClock
from tests.bench.small_models import remember_costs, use_model
from tests.cli.helpers import complain_at_the_end as complain
from tests.cli.helpers import killed
from tests.tune.small_pipeline import small_pipeline

LITTLE = ("benchmark", "--steps", 3, "--rounds", 2, "-v", "I=2", "--scopes", "unet")


@pytest.fixture
def small(monkeypatch):
    """A small pipeline instead of the model."""
    use_model(monkeypatch, small_pipeline)
    for module in (benchmark, profiles):
        monkeypatch.setattr(module, "release_memory", lambda: None)


@pytest.fixture
def asked(monkeypatch):
    """The settings of a run that measures nothing."""
    found = {}

    def run(settings, output, device, on_progress, stop_after):
        found.update(settings=settings, output=output, device=device, stop_after=stop_after)
        return {"cells": []}

    monkeypatch.setattr(benchmark, "run_benchmark", run)
    return found


def test_an_architecture_is_measured_and_shown(run, monkeypatch):
    remember_costs(monkeypatch)
    result = run("benchmark", "-m", "sd15-tiny", "--steps", 3, "--rounds", 2, "-v", "I=2", "--reference", FOLDER)
    assert result.exit_code == 0, result.stderr
    found = read_result(Path("benchmark.json"))
    assert found["settings"]["model"] == "sd15-tiny"
    assert [cell["scope"] for cell in found["cells"]] == ["pipeline", "unet"]
    lines = result.stdout.splitlines()
    assert lines[0] == "64×64, batch 1, float32, eager, whole pipeline: done"
    assert "64×64, batch 1, float32, eager, U-Net alone: done" in lines
    assert lines[-1] == "benchmark.json"
    for words in ("settings", "seconds", "speed-up", "limit", "of it", "kept", "speed-up: median over the rounds"):
        assert words in result.stdout
    rows = [line for line in lines if line.startswith(("no caching", "DeepCache", "reference package", "fewer steps"))]
    expected = list(chain(*(cell["rows"] for cell in found["cells"])))
    assert len(rows) == len(expected) == 8
    for line, row in zip(rows, expected, strict=True):
        name = f"{row['method']}"
        assert line.startswith(name)
        figures = line.removeprefix(name).strip().removeprefix(row["variant"]).split()
        assert figures[:4] == [
            f"{row['median']:.3g}",
            f"{row['speed_up']:.2f}×",
            f"{row['limit']:.2f}×",
            f"{row['share_of_limit']:.0%}",
        ]
    stages = [line for line in result.stderr.splitlines() if line.endswith("…")]
    assert stages == [
        "loading sd15-tiny …",
        "64×64, batch 1, float32, eager, whole pipeline …",
        "64×64, batch 1, float32, eager, U-Net alone …",
    ]


def test_every_option_reaches_the_settings(run, asked):
    Path("here").mkdir()
    result = run(
        *("benchmark", "--model", "sd21", "--scheduler", "euler", "--steps", 20, "--guidance", 4.5, "--device", "cpu"),
        *("-v", "I=3 linear", "--variant", "I=5 B=1", "--sizes", "512,768x512", "--batches", "1,4"),
        *("--dtypes", "float16,bfloat16", "--modes", "eager,compiled", "--scopes", "unet", "--reference", "a.whl"),
        *("--no-fewer-steps", "--rounds", 7, "--warm-up", 2, "--threads", 1, "--stop-after", 2.5, "--seed", 9),
        *("--output", "here/x.json"),
    )
    assert result.exit_code == 0, result.stderr
    assert asked["settings"] == BenchmarkSettings(
        model="sd21",
        variants=(parse_variant("I=3 linear"), parse_variant("I=5 B=1")),
        sizes=((512, 512), (768, 512)),
        batches=(1, 4),
        dtypes=("float16", "bfloat16"),
        modes=("eager", "compiled"),
        scopes=("unet",),
        steps=20,
        rounds=7,
        warm_up=2,
        fewer_steps=False,
        scheduler="euler",
        guidance=4.5,
        reference=Path("a.whl"),
        seed=9,
    )
    assert (asked["output"], asked["device"], asked["stop_after"]) == (Path("here/x.json"), "cpu", 150.0)
    assert torch.get_num_threads() == 1


def test_defaults_are_those_of_the_settings(run, asked):
    assert run("benchmark").exit_code == 0
    assert asked["settings"] == BenchmarkSettings(variants=PUBLISHED_VARIANTS)
    assert (asked["output"], asked["device"], asked["stop_after"]) == (Path("benchmark.json"), "auto", None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", "many"), ["--steps"]),
        (("--rounds", 0), ["rounds must be 1 or more, got 0"]),
        (("--sizes", "big"), ["'big'", "512x768"]),
        (("--sizes", ""), ["WIDTHxHEIGHT", "''"]),
        (("--batches", "1;2"), ["batches", "'1;2'"]),
        (("--batches", "1,"), ["batches", "'1,'"]),
        (("--dtypes", "int8"), ["int8", "float16"]),
        (("--dtypes", "auto,float32", "--device", "cpu"), ["dtypes must differ"]),
        (("--variant", "I=3 cubic"), ["'cubic'", "linear or quadratic"]),
        (("--variant", "plan=nowhere.json"), ["nowhere.json"]),
        (("--threads", 0), ["--threads must be 1 or more, got 0"]),
        (("--stop-after", 0), ["--stop-after must be above 0 minutes, got 0"]),
        (("--stop-after", -1), ["--stop-after must be above 0 minutes, got -1"]),
        (("--stop-after", "nan"), ["--stop-after must be above 0 minutes, got nan"]),
        (("--reference", "nowhere.whl"), ["'nowhere.whl'", "pip download DeepCache==0.1.1"]),
        (("--device", "gpu"), ["'gpu'", "cuda"]),
        (("--output", "nowhere/x.json"), ["the folder 'nowhere' does not exist"]),
        (("--output", "."), ["--output must be a file, and '.' is a folder"]),
        (("--profile", "nowhere/profile"), ["the folder 'nowhere' for 'profile' does not exist", "create it first"]),
        (("--nonsense",), ["--nonsense"]),
    ],
)
def test_invalid_options_are_refused_before_a_model_is_loaded(run, monkeypatch, arguments, words):
    def not_loaded(*_, **__):
        raise AssertionError

    monkeypatch.setattr(benchmark, "load_pipeline", not_loaded)
    complain(run("benchmark", *arguments), *words)
    assert list(Path().iterdir()) == []


def test_a_file_as_profile_folder_is_refused_before_a_model_is_loaded(run, monkeypatch):
    monkeypatch.setattr(benchmark, "load_pipeline", None)
    Path("taken").write_text("mine")
    complain(run("benchmark", "--profile", "taken"), "'taken' is a file", "the name of a folder")
    assert [path.name for path in Path().iterdir()] == ["taken"]
    assert Path("taken").read_text() == "mine"


def test_an_unknown_model_is_refused(run):
    complain(run("benchmark", "--model", "sd15-tinny"), "'sd15-tinny'", "did you mean sd15-tiny")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--scheduler", "eulr"), ["'eulr'", "Did you mean euler or euler-a"]),
        (("--steps", 1001), ["steps must be 1000 or fewer for this model, got 1001"]),
        (("-v", "I=2 B=9"), ["cache_branch_id must be between 0 and 3", "got 9"]),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused_before_anything_runs(run, small, arguments, words):
    complain(run(*LITTLE, *arguments), *words)
    assert list(Path().iterdir()) == []


def test_the_file_of_another_run_is_refused_and_not_changed(run, small):
    assert run(*LITTLE).exit_code == 0
    before = Path("benchmark.json").read_bytes()
    complain(
        run(*LITTLE, "--rounds", 3),
        *("'benchmark.json' is of another run", "settings.rounds is 2 there and 3 now", "another --output"),
    )
    assert Path("benchmark.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_file_is_refused_and_not_changed(run, small, content):
    Path("benchmark.json").write_text(content)
    complain(run(*LITTLE), "'benchmark.json'")
    assert Path("benchmark.json").read_text() == content


def test_ctrl_c_keeps_the_file_and_the_same_command_resumes(run, small, monkeypatch):
    monkeypatch.setattr(benchmark, "timed", FakeClock(stop_at=8))
    result = run(*LITTLE, "--output", "[b]mine.json", "--no-fewer-steps", "--rounds", 9)
    assert result.exit_code == 130
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == "Stopped. The same command resumes from [b]mine.json."
    # A round to warm up, and two that were measured.
    before = read_result(Path("[b]mine.json"))
    assert [len(row["seconds"]) for row in before["cells"][0]["rows"]] == [2, 2]
    monkeypatch.setattr(benchmark, "timed", FakeClock())
    result = run(*LITTLE, "--output", "[b]mine.json", "--no-fewer-steps", "--rounds", 9)
    assert result.exit_code == 0, result.stderr
    after = read_result(Path("[b]mine.json"))
    for old, new in zip(before["cells"][0]["rows"], after["cells"][0]["rows"], strict=True):
        assert new["seconds"][:2] == old["seconds"]
        assert len(new["seconds"]) == 9


def test_a_time_limit_shows_the_results_so_far(run, small, monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(benchmark, "timed", clock)
    monkeypatch.setattr(benchmark, "monotonic", lambda: 1000.0 * len(clock.ran))
    monkeypatch.setattr(benchmark._Stop, "__init__", _begin_at_zero(benchmark._Stop.__init__))
    result = run(*LITTLE, "--stop-after", 1.5)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[-1] == "Stopped after 1.5 minutes. The same command resumes."
    assert result.stdout.splitlines()[0] == "16×16, batch 1, float32, eager, U-Net alone: partial"
    assert result.stdout.splitlines()[-1] == "benchmark.json"
    result = run(*LITTLE, "--stop-after", 1.5)
    assert result.exit_code == 0, result.stderr
    assert "Stopped" not in result.stderr
    assert result.stdout.splitlines()[0] == "16×16, batch 1, float32, eager, U-Net alone: done"


def profile_of(figures, hooks, device="cpu"):
    """A result of `run_profile` whose steps are half convolution and half the rest."""
    steps = [
        {
            "step": name,
            "median": seconds / 2,
            "hooks_seconds": [hooks],
            "kinds": {
                "convolution": {"median": seconds / 2, "share": 0.5},
                "attention": {"median": 0.0, "share": 0.0},
                "the rest": {"median": seconds / 2, "share": 0.5},
            },
        }
        for name, seconds in figures.items()
    ]
    point = {"width": 16, "height": 16, "batch": 1, "dtype": "float32", "mode": "eager"}
    found = point | {"trace": "a.json.gz", "reason": "", "steps": steps}
    failed = point | {"batch": 8, "trace": None, "reason": "out of memory", "steps": []}
    return {"device": {"type": device}, "profiles": [found, failed]}


@pytest.fixture
def profiled(monkeypatch, asked):
    """Sets the result of `run_profile`."""

    def put(result):
        monkeypatch.setattr(profiles, "run_profile", lambda *_: result)

    return put


def test_a_profile_is_shown_as_milliseconds_and_shares(run, profiled):
    profiled(profile_of({"full step": 2.5, "shallow step at branch 0": 0.01}, 0.001))
    result = run("benchmark", "--profile", "profile")
    assert result.exit_code == 0, result.stderr
    lines = [line.strip() for line in result.stdout.splitlines()]
    first = lines.index("16×16, batch 1, float32, eager: time per step")
    table = [line.split() for line in lines[first + 3 : first + 9]]
    assert table == [
        ["\u2500" * len(lines[first + 3])],
        ["convolution", "1250", "ms", "50.0%", "5.00", "ms", "50.0%"],
        ["the", "rest", "1250", "ms", "50.0%", "5.00", "ms", "50.0%"],
        [],
        ["total", "2500", "ms", "10.00", "ms"],
        ["without", "the", "profiler", "1250", "ms", "5.00", "ms"],
    ]
    assert "16×16, batch 8, float32, eager: time per step (out of memory)" in lines
    assert "use its shares, and the time without it" in result.stdout
    assert "DeepCache's Python" not in result.stdout
    assert lines[-2:] == ["profile/a.json.gz", "profile/profile.json"]


def test_a_profile_of_a_gpu_shows_the_time_of_the_hooks_on_the_cpu(run, profiled):
    profiled(profile_of({"full step": 2.5}, 0.001, device="cuda"))
    result = run("benchmark", "--profile", "profile")
    assert ["DeepCache's", "Python", "1.00", "ms"] in [line.split() for line in result.stdout.splitlines()]


def test_no_line_of_a_profile_is_wider_than_the_terminal(run, profiled, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"shallow step at branch {branch}, linear forecast, guidance reuse" for branch in range(5)]
    profiled(profile_of(dict.fromkeys(names, 1234.5), 0.001))
    result = run("benchmark", "--profile", "profile")
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    rows = [line for line in lines if line.startswith("convolution")]
    # Three steps side by side, and two below.
    assert [row.count("%") for row in rows] == [3, 2]
    assert max(map(len, rows)) <= 80
    assert "\u2026" not in "".join(rows)


def test_a_profile_is_taken_of_a_benchmark_that_is_complete_too(run, small, monkeypatch):
    monkeypatch.setattr(benchmark, "timed", FakeClock())
    assert run(*LITTLE).exit_code == 0
    before = Path("benchmark.json").read_bytes()
    result = run(*LITTLE, "--profile", "profile")
    assert result.exit_code == 0, result.stderr
    assert Path("benchmark.json").read_bytes() == before
    trace = Path("profile/16x16-batch1-float32-eager.json.gz")
    assert sorted(Path("profile").iterdir()) == [trace, Path("profile/profile.json")]
    lines = result.stdout.splitlines()
    assert lines[0] == "16×16, batch 1, float32, eager, U-Net alone: done"
    assert lines.index("benchmark.json") < lines.index("16×16, batch 1, float32, eager: time per step")
    assert lines[-2:] == [str(trace), "profile/profile.json"]
    written = json.loads(Path("profile/profile.json").read_text(encoding="utf-8"))
    for kind, figures in written["profiles"][0]["steps"][0]["kinds"].items():
        rows = [line for line in lines if line.startswith(f"{kind}  ")]
        assert len(rows) == (figures["median"] > 0)
    stages = [line for line in result.stderr.splitlines() if line.endswith("…")]
    assert stages[-2:] == ["loading shapes …", "profile of 16×16, batch 1, float32, eager …"]
    # Again, over the existing files.
    assert run(*LITTLE, "--profile", "profile").exit_code == 0


def test_ctrl_c_in_a_profile_keeps_the_result_and_the_profiles_before_it(run, small, monkeypatch):
    monkeypatch.setattr(benchmark, "timed", FakeClock())
    take = profiles.profile_steps

    def stop(runs, trace, after_each):
        if "batch2" in trace.name:
            raise KeyboardInterrupt
        return take(runs, trace, after_each)

    monkeypatch.setattr(profiles, "profile_steps", stop)
    result = run(*LITTLE, "--batches", "1,2", "--profile", "[b]mine")
    assert result.exit_code == 130
    assert "Traceback" not in result.output
    last = "Stopped. The benchmark is complete; finished profiles are in [b]mine."
    assert result.stderr.splitlines()[-1] == last
    assert result.stdout.splitlines()[-1] == "benchmark.json"
    assert [cell["status"] for cell in read_result(Path("benchmark.json"))["cells"]] == ["done", "done"]
    assert sorted(path.name for path in Path("[b]mine").iterdir()) == [
        "16x16-batch1-float32-eager.json.gz",
        "profile.json",
    ]


def _begin_at_zero(init):
    return lambda self, after: init(self, after, begin=0.0)


def test_errors_and_missing_memory_are_shown_with_their_messages(run, monkeypatch):
    message = "[enforce fail at alloc_cpu.cpp:124] can't allocate memory: [/b] 4 bytes"

    def make():
        pipe = small_pipeline()

        def check(unet, args):
            if len(args[0]) > 2:
                raise RuntimeError(message)

        pipe.unet.register_forward_pre_hook(check)
        return pipe

    use_model(monkeypatch, make)
    monkeypatch.setattr(benchmark, "release_memory", lambda: None)
    result = run(*LITTLE, "-v", "I=2 guidance-reuse", "--guidance", 1, "--batches", "1,4")
    assert result.exit_code == 0, result.stderr
    assert f"16×16, batch 4, float32, eager, U-Net alone: out of memory ({message})" in result.stdout.splitlines()
    assert "DeepCache, I=2 B=0 guidance-reuse failed: guidance_reuse runs half" in result.stdout
    (row,) = [line for line in result.stdout.splitlines() if "failed" in line.split()]
    assert row.split()[-4:] == ["–"] * 4


def test_kill_9_loses_nothing(run, tmp_path, monkeypatch):
    remember_costs(monkeypatch)
    arguments = ["benchmark", "--model", "sd15-tiny", "--steps", "2", "--rounds", "4", "--variant", "I=2"]
    arguments += ["--no-fewer-steps", "--scopes", "unet", "--batches", "1,2"]
    arguments += ["--threads", "1", "--device", "cpu", "--output", "killed.json"]
    output = tmp_path / "killed.json"
    # While the first cell is done and the second one is not.
    before = killed(arguments, output, lambda found: found["cells"][0]["status"] == "done")
    assert before["command"].split()[:2] == ["deepcache", "benchmark"]
    assert any(cell["status"] != "done" for cell in before["cells"])
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    after = read_result(output)
    assert {key: after[key] for key in ("command", "date", "settings")} == {
        key: before[key] for key in ("command", "date", "settings")
    }
    assert [cell["status"] for cell in after["cells"]] == ["done"] * 2
    for old, new in zip(before["cells"], after["cells"], strict=True):
        if old["status"] == "done":
            assert new == old
        for old_row, new_row in zip(old["rows"], new["rows"], strict=bool(old["rows"])):
            assert new_row["seconds"][: len(old_row["seconds"])] == old_row["seconds"]
        assert [len(row["seconds"]) for row in new["rows"]] == [4, 4]
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".partial")) == ["killed.json"]
    assert json.loads(output.read_text(encoding="utf-8")) == after
