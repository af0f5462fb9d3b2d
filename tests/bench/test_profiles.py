"""What `run_profile` takes profiles of, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from DeepCache.bench import benchmark as benchmark_module
from DeepCache.bench import profiles
from DeepCache.bench.benchmark import BenchmarkSettings, run_benchmark
from DeepCache.bench.profiles import check_profile, run_profile, step_name
from DeepCache.bench.variants import Variant, parse_variant
from DeepCache.config import DeepCacheConfig
from DeepCache.schedule import Step
from tests.bench.small_models import plan_for, unconditional_pipeline
from tests.tune.small_pipeline import small_pipeline

TWO = parse_variant("I=2")


def settings(*variants, **changed):
    """Little to do."""
    values = {"model": "some model", "variants": variants or (TWO,), "steps": 3, "rounds": 1, "warm_up": 0}
    return BenchmarkSettings(**values | {"fewer_steps": False, "scopes": ("unet",)} | changed)


@pytest.fixture
def measured(tmp_path, model, clock, monkeypatch):
    """What a benchmark of a pipeline gives. Profiles are then of the same pipeline."""

    def measured(make, chosen):
        model(make)
        monkeypatch.setattr(profiles, "release_memory", lambda: None)
        clock(only_first=True)
        return run_benchmark(chosen, tmp_path / "benchmark.json", device="cpu")

    return measured


@pytest.fixture
def taken(monkeypatch):
    """Which steps profiles are taken of, by their trace; none is."""
    found = {}

    def take(runs, trace, after_each):
        found[trace.name] = [names for _, names in runs]
        for _ in range(profiles.PASSES * len(runs)):
            after_each()
        return []

    monkeypatch.setattr(profiles, "profile_steps", take)
    return found


def test_every_point_has_a_profile_and_a_trace_regardless_of_scope(tmp_path, measured):
    chosen = settings(batches=(1, 2), scopes=("pipeline", "unet"), guidance=3.0, seed=4, steps=4)
    benchmark = measured(small_pipeline, chosen)
    result = run_profile(chosen, benchmark, tmp_path / "profile", device="cpu")
    folder = {path.name: path for path in (tmp_path / "profile").iterdir()}
    traces = ["16x16-batch1-float32-eager.json.gz", "16x16-batch2-float32-eager.json.gz"]
    assert sorted(folder) == [*traces, "profile.json"]
    assert json.loads(folder["profile.json"].read_text(encoding="utf-8")) == result
    assert (result["format"], result["seed"], result["device"]["type"]) == ("DeepCache profile 1", 4, "cpu")
    assert {"command", "date", "machine", "versions"} < result.keys()
    for name in ("model", "pipeline", "unet", "scheduler", "steps", "guidance", "threads", "variants"):
        assert result["settings"][name] == benchmark["settings"][name]
    assert [found["trace"] for found in result["profiles"]] == traces
    for found, batch in zip(result["profiles"], (1, 2), strict=True):
        point = {name: found[name] for name in ("width", "height", "batch", "dtype", "mode", "reason")}
        expected = {"width": 16, "height": 16, "batch": batch, "dtype": "float32", "mode": "eager", "reason": ""}
        assert point == expected
        assert [step["step"] for step in found["steps"]] == ["full step", "shallow step at branch 0"]
        assert [len(step["seconds"]) for step in found["steps"]] == [5, 5]


def test_every_kind_of_step_runs_with_the_first_variant_that_has_it(tmp_path, measured, taken):
    each = (Step(True), Step(False, branch=1), Step(False, branch=2))
    plan = plan_for(unconditional_pipeline(), each)
    chosen = settings(
        *(parse_variant(text) for text in ("I=2", "I=3", "I=3 linear", "I=3 B=1")),
        Variant("plan a", DeepCacheConfig(plan=plan)),
    )
    run_profile(chosen, measured(unconditional_pipeline, chosen), tmp_path, device="cpu")
    full = "full step"
    assert taken["16x16-batch1-float32-eager.json.gz"] == [
        (full, "shallow step at branch 0", full),
        (full, *["shallow step at branch 0, linear forecast"] * 2),
        (full, *["shallow step at branch 1"] * 2),
        (full, "shallow step at branch 1", "shallow step at branch 2"),
    ]


def test_an_adaptive_variant_is_profiled_as_a_uniform_one(tmp_path, measured, taken):
    names = ("I=3 limited skipped adaptive", "I=3 alternating")
    chosen = settings(*map(parse_variant, names), scopes=("pipeline",))
    run_profile(chosen, measured(unconditional_pipeline, chosen), tmp_path, device="cpu")
    assert taken["16x16-batch1-float32-eager.json.gz"] == [
        ("full step", *["skipped step, limited forecast"] * 2),
        ("full step", "shallow step at branch 0", "skipped step"),
    ]


def test_points_that_were_not_measured_are_not_profiled(tmp_path, measured, taken):
    chosen = settings(TWO, parse_variant("I=3 B=1"), batches=(1, 2, 3, 4))
    benchmark = measured(unconditional_pipeline, chosen)
    cells = benchmark["cells"]
    cells[0]["status"] = "partial"
    cells[0]["rows"][1]["seconds"] = []
    cells[1]["status"] = "out of memory"
    cells[2] |= {"status": "waiting", "rows": [], "unet_calls": None}
    for row in cells[3]["rows"][1:]:
        row["seconds"] = []
    result = run_profile(chosen, benchmark, tmp_path, device="cpu")
    assert taken == {
        "16x16-batch1-float32-eager.json.gz": [
            ("full step", "shallow step at branch 1", "shallow step at branch 1"),
        ]
    }
    assert len(result["profiles"]) == 1


def test_every_dtype_loads_its_own_pipeline(tmp_path, measured, taken, monkeypatch):
    chosen = settings(dtypes=("float32", "bfloat16"), batches=(1, 2))
    benchmark = measured(unconditional_pipeline, chosen)
    loaded = []

    def load(model, *, dtype, device, **_):
        loaded.append((model, dtype, device.type))
        return unconditional_pipeline().to(getattr(torch, dtype))

    monkeypatch.setattr(benchmark_module, "load_pipeline", load)
    run_profile(chosen, benchmark, tmp_path, device="cpu")
    assert loaded == [("some model", "float32", "cpu"), ("some model", "bfloat16", "cpu")]
    assert list(taken) == [
        f"16x16-batch{batch}-{dtype}-eager.json.gz" for dtype in ("float32", "bfloat16") for batch in (1, 2)
    ]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_scheduler_and_the_mode_are_those_of_the_benchmark(tmp_path, measured, taken, monkeypatch):
    chosen = settings(scheduler="pndm", modes=("eager", "compiled"), steps=4)
    benchmark = measured(small_pipeline, settings(scheduler="pndm", steps=4))
    benchmark["cells"].append(benchmark["cells"][0] | {"mode": "compiled"})
    modes = []
    case = profiles.BenchmarkCase
    monkeypatch.setattr(
        profiles, "BenchmarkCase", lambda *args, **more: modes.append(more["mode"]) or case(*args, **more)
    )
    run_profile(chosen, benchmark, tmp_path, device="cpu")
    assert modes == ["eager", "compiled"]
    # PNDM makes one call more.
    shallow = "shallow step at branch 0"
    assert taken["16x16-batch1-float32-compiled.json.gz"] == [("full step", shallow) * 2 + ("full step",)]


def test_out_of_memory_marks_a_profile_and_the_next_one_is_taken(tmp_path, measured, monkeypatch):
    chosen = settings(batches=(1, 2))
    benchmark = measured(unconditional_pipeline, chosen)
    take = profiles.profile_steps

    def run_out(runs, trace, after_each):
        if "batch1" in trace.name:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return take(runs, trace, after_each)

    monkeypatch.setattr(profiles, "profile_steps", run_out)
    first, second = run_profile(chosen, benchmark, tmp_path / "profile", device="cpu")["profiles"]
    assert (first["trace"], first["reason"], first["steps"]) == (None, "out of memory", [])
    assert (second["trace"], second["reason"]) == ("16x16-batch2-float32-eager.json.gz", "")
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == [second["trace"], "profile.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug")])
def test_finished_profiles_are_kept_if_the_next_one_fails(tmp_path, measured, monkeypatch, error):
    chosen = settings(batches=(1, 2))
    benchmark = measured(unconditional_pipeline, chosen)
    take = profiles.profile_steps

    def stop(runs, trace, after_each):
        if "batch2" in trace.name:
            raise error
        return take(runs, trace, after_each)

    monkeypatch.setattr(profiles, "profile_steps", stop)
    with pytest.raises(type(error)):
        run_profile(chosen, benchmark, tmp_path / "profile", device="cpu")
    written = json.loads((tmp_path / "profile/profile.json").read_text(encoding="utf-8"))
    (found,) = written["profiles"]
    assert found["trace"] == "16x16-batch1-float32-eager.json.gz"
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == [found["trace"], "profile.json"]


def test_progress_rises_to_the_end(tmp_path, measured, taken):
    chosen = settings(TWO, parse_variant("I=2 B=1"), batches=(1, 3))
    benchmark = measured(unconditional_pipeline, chosen)
    told = []
    run_profile(chosen, benchmark, tmp_path, device="cpu", on_progress=told.append)
    assert list(dict.fromkeys(now.stage for now in told)) == [
        "loading some model",
        "profile of 16×16, batch 1, float32, eager",
        "profile of 16×16, batch 3, float32, eager",
    ]
    done = [now.done / (16 * 16) for now in told]
    assert done == sorted(done)
    # Three passes of two variants, at a batch of 1 and of 3.
    assert done[-1] == 6 + 18
    assert {now.total for now in told} == {told[-1].done}


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (Step(True), "full step"),
        (Step(True, forecast="linear"), "full step"),
        (Step(True, guidance_reuse=True), "full step, guidance reuse"),
        (Step(False), "shallow step at branch 0"),
        (Step(False, 2, "quadratic"), "shallow step at branch 2, quadratic forecast"),
        (Step(False, 1, guidance_reuse=True), "shallow step at branch 1, guidance reuse"),
        (Step(False, skipped=True), "skipped step"),
        (Step(False, 0, "response", skipped=True), "skipped step, response forecast"),
    ],
)
def test_a_step_is_named_after_its_kind(step, name):
    assert step_name(step) == name


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match="file' is a file: give the name of a folder for the profile"):
        check_profile(file, "cpu")
    with pytest.raises(ValueError, match=r"the folder '.*nowhere' for 'profile' does not exist; create it first"):
        check_profile(tmp_path / "nowhere" / "profile", "cpu")
    for good in (tmp_path, tmp_path / "new", Path("new")):
        check_profile(good, "cpu")
    assert list(tmp_path.iterdir()) == [file]


def test_a_device_without_profiles_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "resolve_device", lambda device: torch.device("mps"))
    with pytest.raises(ValueError, match="a profile requires one of the devices cpu and cuda, got mps"):
        check_profile(tmp_path)
