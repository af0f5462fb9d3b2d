"""What `run_benchmark` measures, and how it works out what it writes."""

from __future__ import annotations

import re
from itertools import product
from statistics import median

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from benchmarks.harness.reference_package import FOLDER
from DeepCache import DeepCacheConfig
from DeepCache.bench import benchmark
from DeepCache.bench.benchmark import BenchmarkSettings, is_complete, run_benchmark
from DeepCache.bench.benchmark_case import BASELINE, DEEPCACHE, FEWER_STEPS, REFERENCE
from DeepCache.bench.clock import Timing, is_out_of_memory, release_memory, timed
from DeepCache.bench.result_file import read_result
from DeepCache.bench.variants import Variant, parse_variant
from DeepCache.engine import stats
from DeepCache.engine.attach import apply_deepcache
from DeepCache.engine.cost import Costs, count_costs
from DeepCache.engine.guidance import why_not_two_halves
from DeepCache.models import set_scheduler
from DeepCache.schedule import Step
from tests.bench.small_models import plan_for, unconditional_pipeline
from tests.engine.backend import use_backend
from tests.tune.small_pipeline import small_pipeline

TWO = parse_variant("I=2")


def settings(*variants, **changed):
    """Little to do."""
    values = {"model": "some model", "variants": variants or (TWO,), "steps": 4, "rounds": 1, "warm_up": 0}
    return BenchmarkSettings(**values | {"fewer_steps": False, "scopes": ("unet",)} | changed)


def run(tmp_path, chosen, **more):
    result = run_benchmark(chosen, tmp_path / "benchmark.json", device="cpu", **more)
    assert read_result(tmp_path / "benchmark.json") == result
    return result


def rows_of(result, method=None):
    return [row for cell in result["cells"] for row in cell["rows"] if method in (None, row["method"])]


def test_the_cells_are_all_of_the_grid_in_order(tmp_path, model, clock):
    model(small_pipeline)
    clock()
    sizes, batches, scopes = ((16, 16), (24, 16)), (1, 2), ("pipeline", "unet")
    result = run(tmp_path, settings(sizes=sizes, batches=batches, scopes=scopes, steps=2))
    points = [
        ((cell["width"], cell["height"]), cell["batch"], cell["scope"], cell["dtype"], cell["mode"])
        for cell in result["cells"]
    ]
    assert points == [(*point, "float32", "eager") for point in product(sizes, batches, scopes)]
    assert {cell["status"] for cell in result["cells"]} == {"done"}
    assert result["settings"]["grid"] == {
        "dtypes": ["float32"],
        "modes": ["eager"],
        "sizes": [[16, 16], [24, 16]],
        "batches": [1, 2],
        "scopes": ["pipeline", "unet"],
    }
    assert is_complete(result)
    for cell in result["cells"]:
        assert [row["method"] for row in cell["rows"]] == [BASELINE, DEEPCACHE]
        assert (cell["unet_calls"], cell["reason"]) == (2, "")


def test_every_dtype_loads_its_own_pipeline(tmp_path, clock, monkeypatch):
    clock()
    loaded = []

    def load(model, *, dtype, **_):
        loaded.append(dtype)
        return unconditional_pipeline().to(getattr(torch, dtype))

    monkeypatch.setattr(benchmark, "load_pipeline", load)
    result = run(tmp_path, settings(dtypes=("auto", "bf16"), batches=(1, 2), steps=2))
    assert loaded == ["float32", "bfloat16"]
    assert [cell["dtype"] for cell in result["cells"]] == ["float32", "float32", "bfloat16", "bfloat16"]
    assert result["settings"]["grid"]["dtypes"] == ["float32", "bfloat16"]
    assert {row["error"] for row in rows_of(result)} == {""}


def test_auto_is_resolved_and_not_measured_twice(tmp_path, model, clock):
    model(unconditional_pipeline)
    ran = clock()
    with pytest.raises(ValueError, match="dtypes must differ from each other"):
        run(tmp_path, settings(dtypes=("auto", "float32")))
    with pytest.raises(ValueError, match="'int8'"):
        run(tmp_path, settings(dtypes=("int8",)))
    assert ran.ran == []
    assert list(tmp_path.iterdir()) == []


def test_in_each_round_every_case_runs_once_and_a_different_one_goes_first(tmp_path, model, clock):
    model(small_pipeline)
    ran = clock()
    chosen = settings(TWO, parse_variant("I=3"), rounds=5, warm_up=2, reference=FOLDER, steps=3)
    result = run(tmp_path, chosen)
    everyone = [(row["method"], row["variant"]) for row in rows_of(result)]
    assert everyone == [
        (BASELINE, "3 steps"),
        (DEEPCACHE, "I=2 B=0"),
        (DEEPCACHE, "I=3 B=0"),
        (REFERENCE, "I=2 B=0"),
        (REFERENCE, "I=3 B=0"),
    ]
    rounds = [ran.names[first : first + 5] for first in range(0, len(ran.names), 5)]
    assert len(rounds) == 7
    for names in rounds:
        first = everyone.index(names[0])
        assert names == everyone[first:] + everyone[:first]
    assert [names[0] for names in rounds[2:]] == everyone
    assert all(before[0] != after[0] for before, after in zip(rounds, rounds[1:], strict=False))


def test_of_a_warm_up_only_the_first_time_is_recorded(tmp_path, model, clock):
    model(unconditional_pipeline)
    ran = clock()
    result = run(tmp_path, settings(rounds=3, warm_up=2))
    for row in rows_of(result):
        own = [
            seconds
            for seconds, name in zip(ran.seconds, ran.names, strict=True)
            if name == (row["method"], row["variant"])
        ]
        assert len(own) == 5
        assert row["first_seconds"] == own[0]
        assert row["seconds"] == own[2:]


def test_without_a_warm_up_the_first_run_is_the_first_of_the_rounds(tmp_path, model, clock):
    model(unconditional_pipeline)
    clock()
    for row in rows_of(run(tmp_path, settings(rounds=2))):
        assert len(row["seconds"]) == 2
        assert row["first_seconds"] == row["seconds"][0]


def test_the_figures_of_a_row_are_computed_from_its_timings(tmp_path, model, monkeypatch):
    model(unconditional_pipeline)
    # By round, without caching and with: ratios of 2, 5 and 3, though the medians are 10 and 3.
    told = {BASELINE: iter([8.0, 10.0, 12.0]), DEEPCACHE: iter([4.0, 2.0, 4.0])}

    def clock(run, device):
        run()
        return Timing(next(told[run.__self__.method]), None)

    monkeypatch.setattr(benchmark, "timed", clock)
    baseline, cached = rows_of(run(tmp_path, settings(rounds=3)))
    assert baseline["seconds"] == [8.0, 10.0, 12.0]
    assert (baseline["median"], baseline["spread"]) == (10.0, [8.0, 12.0])
    assert (baseline["speed_up"], baseline["speed_up_spread"], baseline["limit"]) == (1, [1, 1], 1)
    assert cached["seconds"] == [4.0, 2.0, 4.0]
    assert (cached["median"], cached["spread"]) == (4.0, [2.0, 4.0])
    assert (cached["speed_up"], cached["speed_up_spread"]) == (3.0, [2.0, 5.0])
    assert cached["limit"] == 1 / cached["mac_share"]
    assert cached["share_of_limit"] == pytest.approx(3.0 * cached["mac_share"])
    assert baseline["share_of_limit"] == 1


def test_real_time_passes_too(tmp_path, model):
    model(unconditional_pipeline)
    result = run(tmp_path, settings(rounds=3))
    baseline, cached = rows_of(result)
    for row in (baseline, cached):
        assert len(row["seconds"]) == 3
        assert min(row["seconds"]) > 0
        assert row["median"] == median(row["seconds"])
        ratios = [one / other for one, other in zip(baseline["seconds"], row["seconds"], strict=True)]
        assert row["speed_up"] == median(ratios)
        assert row["peak_memory"] is None


def test_cost_is_the_sum_over_the_steps_and_equals_the_statistics(tmp_path, model, clock):
    model(small_pipeline)
    clock()
    chosen = settings(TWO, parse_variant("I=3 B=1"), parse_variant("I=2 guidance-reuse"), steps=5, guidance=3.0)
    result = run(tmp_path, chosen)
    pipe = small_pipeline()
    engine = apply_deepcache(pipe, DeepCacheConfig(1))
    pipe("a", num_inference_steps=1, guidance_scale=3.0)
    sample = (torch.zeros(2, 4, 16, 16), torch.tensor(1))
    costs = count_costs(pipe.unet, sample, {"encoder_hidden_states": torch.zeros(2, 3, 8)})
    zero, one = costs.share(0), costs.share(1)
    (cell,) = result["cells"]
    assert cell["full_gmacs"] == round(costs.full / 1e9, 3)
    assert cell["unet_calls"] == 5
    expected = [1, (3 + 2 * zero) / 5, (2 + 3 * one) / 5, (3 + 2 * zero / 2) / 5]
    assert [row["mac_share"] for row in cell["rows"]] == pytest.approx(expected)
    assert [row["pattern"] for row in cell["rows"]] == ["FFFFF", "F.F.F", "F..F.", "F.F.F"]
    for row, variant in zip(cell["rows"][1:], chosen.variants, strict=True):
        engine = apply_deepcache(pipe, variant.config)
        pipe("a", num_inference_steps=5, guidance_scale=3.0)
        told = engine.stats
        assert (row["pattern"], row["mac_share"], row["bytes_kept"]) == (told.pattern, told.mac_share, told.bytes_kept)


def test_fewer_steps_have_the_costs_of_the_variants_without_duplicates(tmp_path, model, clock, monkeypatch):
    model(small_pipeline)
    # Of ten steps: 5.5, 3.7, 3.7, and all of them.
    monkeypatch.setattr(benchmark, "count_costs", lambda *_: Costs(1000, {0: 100, 1: 100}, {0: 8, 1: 8}))
    clock()
    chosen = settings(*map(parse_variant, ("I=2", "I=4", "I=4 B=1", "I=1")), steps=10, fewer_steps=True)
    result = run(tmp_path, chosen)
    fewer = rows_of(result, FEWER_STEPS)
    assert [row["variant"] for row in fewer] == ["6 steps", "4 steps"]
    assert [row["steps"] for row in fewer] == [6, 4]
    assert [row["mac_share"] for row in fewer] == [0.6, 0.4]
    assert [row["pattern"] for row in fewer] == ["F" * 6, "F" * 4]
    assert [row["bytes_kept"] for row in fewer] == [0, 0]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_fewer_steps_are_counted_in_unet_calls_if_a_step_has_several(tmp_path, clock, monkeypatch):
    def heun():
        pipe = small_pipeline()
        set_scheduler(pipe, "heun")
        return pipe

    monkeypatch.setattr(benchmark, "load_pipeline", lambda *_, **__: heun())
    monkeypatch.setattr(benchmark, "count_costs", lambda *_: Costs(1000, {0: 0}, {0: 8}))
    clock()
    result = run(tmp_path, settings(steps=5, fewer_steps=True))
    # Nine calls, of which five are full: 2.8 of 5 steps.
    (fewer,) = rows_of(result, FEWER_STEPS)
    assert (fewer["variant"], fewer["pattern"], fewer["mac_share"]) == ("3 steps", "FFFFF", 5 / 9)
    assert rows_of(result, DEEPCACHE)[0]["pattern"] == "F.F.F.F.F"


def test_the_reference_package_is_measured_for_variants_it_supports(tmp_path, model, clock):
    model(small_pipeline)
    clock()
    names = ("I=2", "I=2 linear", "I=3", "I=2 non-uniform", "I=2 guidance-reuse")
    result = run(tmp_path, settings(*map(parse_variant, names), reference=FOLDER, guidance=3.0))
    assert result["settings"]["reference"] is True
    reference = rows_of(result, REFERENCE)
    assert [row["variant"] for row in reference] == ["I=2 B=0", "I=3 B=0"]
    by_name = {row["variant"]: row for row in rows_of(result, DEEPCACHE)}
    for row in reference:
        assert row["pattern"] is None
        assert row["mac_share"] == pytest.approx(by_name[row["variant"]]["mac_share"])
        assert row["bytes_kept"] > by_name[row["variant"]]["bytes_kept"] > 0


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(("scheduler", "full"), [("ddim", 3), ("pndm", 2), ("heun", 1)])
def test_the_cost_of_the_reference_package_is_that_of_its_actual_steps(tmp_path, model, clock, scheduler, full):
    model(small_pipeline)
    costs = Costs(1000, {0: 100}, {0: 8})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(benchmark, "count_costs", lambda *_: costs)
        ran = clock()
        result = run(tmp_path, settings(scheduler=scheduler, reference=FOLDER, steps=5, scopes=("pipeline",)))
    (row,) = rows_of(result, REFERENCE)
    calls = result["cells"][0]["unet_calls"]
    assert row["mac_share"] == pytest.approx((full + 0.1 * (calls - full)) / calls)
    # It never finds the second of two timesteps of one value.
    (one,) = [one for one in ran.ran if one.method == REFERENCE]
    deep = []
    one.pipe.unet.mid_block.resnets[0].register_forward_hook(lambda *_: deep.append(1))
    one.run()
    assert len(deep) == full


def test_a_missing_reference_package_is_reported_before_loading(tmp_path, monkeypatch):
    def not_loaded(*_, **__):
        raise AssertionError

    monkeypatch.setattr(benchmark, "load_pipeline", not_loaded)
    with pytest.raises(FileNotFoundError, match="no reference package"):
        run(tmp_path, settings(reference=tmp_path / "nowhere.whl"))


def test_a_reference_package_that_does_not_fit_the_model_fails_alone(tmp_path, model, clock):
    def no_middle():
        pipe = small_pipeline()
        pipe.unet.mid_block = None
        return pipe

    model(no_middle)
    clock()
    baseline, cached, reference = rows_of(run(tmp_path, settings(reference=FOLDER, rounds=2)))
    assert reference["seconds"] == []
    assert "forward" in reference["error"]
    for row in (baseline, cached):
        assert row["error"] == ""
        assert len(row["seconds"]) == 2


def test_the_cost_of_an_adaptive_schedule_is_measured_in_a_run(tmp_path, model, clock):
    model(small_pipeline)
    clock()
    chosen = parse_variant("I=4 adaptive threshold=1000000")
    result = run(tmp_path, settings(chosen, steps=10, scopes=("pipeline",), fewer_steps=True))
    (cached,), (fewer,) = (rows_of(result, method) for method in (DEEPCACHE, FEWER_STEPS))
    # The first two steps and the last are full, then one more so that an error is known, and then every fourth.
    assert cached["pattern"] == "FFF...F..F"
    assert fewer["steps"] == max(1, round(10 * cached["mac_share"]))


def test_an_adaptive_schedule_is_refused_for_the_unet_scope():
    with pytest.raises(ValueError, match=r"'I=4 B=0 adaptive threshold=0.1' decides during a run.*--scopes pipeline"):
        settings(parse_variant("I=4 adaptive"))


def test_skipped_steps_are_measured(tmp_path, model, clock):
    model(small_pipeline)
    clock()
    (row,) = rows_of(run(tmp_path, settings(parse_variant("I=2 response skipped"))), DEEPCACHE)
    assert (row["pattern"], row["mac_share"], row["error"]) == ("F-F-", 0.5, "")


def test_a_plan_for_another_model_is_refused_before_anything_runs(tmp_path, model, clock):
    model(unconditional_pipeline)
    ran = clock()
    each = (Step(True), Step(False), Step(False), Step(True))
    plan = plan_for(unconditional_pipeline(block_out_channels=(4, 12)), each)
    with pytest.raises(ValueError, match=r"tuned for something else.*other layers.*force"):
        run(tmp_path, settings(Variant("plan a", DeepCacheConfig(plan=plan))))
    assert ran.ran == []
    assert list(tmp_path.iterdir()) == []
    forced = Variant("plan a", DeepCacheConfig(plan=plan, force_plan=True))
    assert rows_of(run(tmp_path, settings(forced)), DEEPCACHE)[0]["pattern"] == "F..F"


def test_a_plan_for_another_number_of_steps_is_refused_before_anything_runs(tmp_path, model, clock):
    model(unconditional_pipeline)
    ran = clock()
    plan = plan_for(unconditional_pipeline(), (Step(True), Step(False), Step(False)))
    with pytest.raises(ValueError, match="for 3 steps, but this run has 4"):
        run(tmp_path, settings(Variant("plan a", DeepCacheConfig(plan=plan))))
    assert ran.ran == []
    assert list(tmp_path.iterdir()) == []
    forced = Variant("plan a", DeepCacheConfig(plan=plan, force_plan=True))
    (row,) = rows_of(run(tmp_path, settings(forced)), DEEPCACHE)
    assert row["pattern"] == plan.schedule.stretched(4).pattern(4)


def test_a_branch_that_is_too_deep_and_too_many_steps_are_refused_before_anything_runs(tmp_path, model, clock):
    model(unconditional_pipeline)
    ran = clock()
    with pytest.raises(ValueError, match="between 0 and 3 for this UNet2DModel, got 9"):
        run(tmp_path, settings(TWO, parse_variant("I=2 B=9")))
    with pytest.raises(ValueError, match="steps must be 1000 or fewer for this model, got 1001"):
        run(tmp_path, settings(steps=1001))
    with pytest.raises(ValueError, match="has no guidance scale, got 3"):
        run(tmp_path, settings(guidance=3.0))
    with pytest.raises(ValueError, match="the size of a DDPMPipeline is always 16x16, got 24x16"):
        run(tmp_path, settings(sizes=((24, 16),)))
    assert ran.ran == []
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_one_case_does_not_affect_the_others(tmp_path, model, clock):
    model(small_pipeline)
    ran = clock()
    chosen = settings(parse_variant("I=2 guidance-reuse"), TWO, rounds=3, warm_up=1, guidance=1.0, fewer_steps=True)
    result = run(tmp_path, chosen)
    refused = rows_of(result)[1]
    pipe = small_pipeline()
    pipe("a", num_inference_steps=1, guidance_scale=1.0)
    assert why_not_two_halves(pipe, pipe.unet, torch.zeros(1, 4, 16, 16)) in refused["error"]
    assert refused["seconds"] == []
    assert [refused[name] for name in ("median", "spread", "speed_up", "limit", "bytes_kept")] == [None] * 5
    others = [row for row in rows_of(result) if row is not refused]
    assert {row["method"] for row in others} == {BASELINE, DEEPCACHE, FEWER_STEPS}
    assert {len(row["seconds"]) for row in others} == {3}
    assert {row["error"] for row in others} == {""}
    # It is not tried again.
    assert len(ran.names) == 4 * len(others)
    assert result["cells"][0]["status"] == "done"


def runs_out_of_memory(samples, method=None):
    """A pipeline whose U-Net has no memory for that many samples at once; or only with DeepCache on it."""

    def make():
        pipe = small_pipeline()

        def check(unet, args):
            if len(args[0]) >= samples and (method is None or "_deepcache_engine" in unet.__dict__):
                raise torch.OutOfMemoryError("Out of memory: tried to allocate a lot.\nand more about it")

        pipe.unet.register_forward_pre_hook(check)
        return pipe

    return make


@pytest.mark.parametrize("scope", ["pipeline", "unet"])
def test_out_of_memory_marks_a_cell_and_the_next_one_is_measured(tmp_path, model, clock, scope):
    model(runs_out_of_memory(6))
    clock()
    # With guidance there are two samples for each image.
    result = run(tmp_path, settings(batches=(1, 3, 2), guidance=3.0, scopes=(scope,)))
    assert [cell["status"] for cell in result["cells"]] == ["done", "out of memory", "done"]
    assert [cell["reason"] for cell in result["cells"]] == ["", "Out of memory: tried to allocate a lot.", ""]
    assert is_complete(result)
    for cell in (result["cells"][0], result["cells"][2]):
        assert [len(row["seconds"]) for row in cell["rows"]] == [1, 1]
    # What could not be measured is not tried again.
    again = clock()
    assert run(tmp_path, settings(batches=(1, 3, 2), guidance=3.0, scopes=(scope,))) == result
    assert again.ran == []


def test_out_of_memory_of_one_case_marks_only_its_row(tmp_path, model, clock):
    model(runs_out_of_memory(4, DEEPCACHE))
    clock()
    result = run(tmp_path, settings(batches=(1, 2), guidance=3.0, rounds=2))
    assert [cell["status"] for cell in result["cells"]] == ["done", "done"]
    assert [row["error"] for row in rows_of(result)] == ["", "", "", "out of memory"]
    assert [len(row["seconds"]) for row in rows_of(result)] == [2, 2, 2, 0]


def test_errors_other_than_out_of_memory_are_raised(tmp_path, model, clock):
    def broken():
        pipe = unconditional_pipeline()

        def fail(*_):
            raise RuntimeError("a bug")

        pipe.unet.register_forward_pre_hook(fail)
        return pipe

    model(broken)
    clock()
    with pytest.raises(RuntimeError, match="a bug"):
        run(tmp_path, settings())


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 4 bytes"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_out_of_memory_errors_are_recognised(error, is_it):
    assert is_out_of_memory(error) is is_it


def test_out_of_memory_on_the_cpu_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_timing_runs_once_and_has_no_memory_on_a_cpu():
    ran = []
    timing = timed(lambda: ran.append(1), torch.device("cpu"))
    assert ran == [1]
    assert timing.seconds > 0
    assert timing.peak_memory is None
    release_memory()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_settings_are_recorded(tmp_path, model, clock):
    model(small_pipeline)
    clock()
    result = run(tmp_path, settings(scheduler="euler", guidance=2.5, rounds=2, warm_up=1, seed=4))
    found = result["settings"]
    assert (found["model"], found["pipeline"], found["unet"]) == ("some model", "SmallPipeline", "UNet2DConditionModel")
    assert (found["scheduler"], found["steps"], found["guidance"]) == ("EulerDiscreteScheduler", 4, 2.5)
    assert (found["rounds"], found["warm_up"], found["threads"]) == (2, 1, 1)
    assert found["variants"] == {"I=2 B=0": DeepCacheConfig(2, forecast="none").to_dict()}
    assert (found["reference"], found["fewer_steps"], found["random_weights"]) == (False, False, False)
    assert (result["seed"], result["device"]["type"]) == (4, "cpu")


def test_the_default_guidance_scale_is_the_recommended_one(tmp_path, model, clock):
    model(small_pipeline)
    clock()
    assert run(tmp_path, settings())["settings"]["guidance"] == 7.5
    (tmp_path / "benchmark.json").unlink()
    assert run(tmp_path, settings(model="shapes"))["settings"]["guidance"] == 2
    (tmp_path / "benchmark.json").unlink()
    model(unconditional_pipeline)
    assert run(tmp_path, settings())["settings"]["guidance"] is None


def test_a_folder_takes_precedence_over_an_architecture(tmp_path, clock, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unconditional_pipeline().save_pretrained("sd15")
    clock()
    result = run(tmp_path, settings(model="sd15"))
    assert result["settings"]["pipeline"] == "DDPMPipeline"
    assert result["settings"]["random_weights"] is False
    assert result["settings"]["grid"]["sizes"] == [[16, 16]]


def test_an_architecture_has_random_weights_and_a_size(tmp_path, clock, monkeypatch):
    for module in (benchmark, stats):
        monkeypatch.setattr(module, "count_costs", lambda *_: Costs(1000, {0: 100}, {0: 8}))
    clock(only_first=True)
    result = run(tmp_path, settings(model="sd15-tiny", steps=2))
    assert result["settings"]["random_weights"] is True
    assert result["settings"]["grid"]["sizes"] == [[64, 64]]
    # PNDM makes one call more.
    assert [row["pattern"] for row in rows_of(result)] == ["FFF", "F.F"]


def test_default_variants_are_those_of_the_diffusers_documentation():
    chosen = BenchmarkSettings()
    assert [variant.name for variant in chosen.variants] == ["I=3 B=0", "I=5 B=0", "I=5 B=1"]
    assert (chosen.model, chosen.steps, chosen.scopes) == ("shapes", 50, ("pipeline", "unet"))


def test_progress_rises_evenly_to_the_end(tmp_path, model, clock):
    model(unconditional_pipeline)
    clock()
    told = []
    chosen = settings(batches=(1, 2), rounds=3, warm_up=1)
    run(tmp_path, chosen, on_progress=told.append)
    assert told[0].stage == "loading some model"
    rising = [round(now.done, 6) for now in told]
    assert rising == sorted(rising)
    assert told[-1].done == pytest.approx(told[-1].total)
    stages = list(dict.fromkeys(now.stage for now in told))
    assert stages == [
        "loading some model",
        "16×16, batch 1, float32, eager, U-Net alone",
        "16×16, batch 2, float32, eager, U-Net alone",
    ]
    for stage in stages[1:]:
        done = list(dict.fromkeys(round(now.done, 6) for now in told if now.stage == stage))
        steps = [after - before for before, after in zip(done, done[1:], strict=False)]
        # Four rounds of the same.
        assert len(steps) == 4
        assert steps == pytest.approx([steps[0]] * 4)


def test_only_compiled_cells_compile_and_each_case_once(tmp_path, model, clock, monkeypatch):
    model(unconditional_pipeline)
    counter = use_backend(monkeypatch, CompileCounter())
    ran = clock()
    frames = []
    chosen = settings(modes=("eager", "compiled"), steps=2, rounds=2, warm_up=1, fewer_steps=True)
    result = run(tmp_path, chosen, on_progress=lambda _: frames.append((len(ran.ran), counter.frame_count)))
    assert [cell["mode"] for cell in result["cells"]] == ["eager", "compiled"]
    runs = len(rows_of(result)) // 2
    after = dict(frames)
    # Three rounds of nothing; then one graph without caching, a full and a shallow one with it, and no more.
    assert {after[runs * rounds] for rounds in range(1, 4)} == {0}
    assert {after[runs * rounds] for rounds in range(4, 7)} == {3}
    torch.compiler.reset()


def test_a_second_run_of_a_finished_file_measures_nothing(tmp_path, model, clock):
    model(unconditional_pipeline)
    clock()
    first = run(tmp_path, settings(rounds=2))
    again = clock()
    assert run(tmp_path, settings(rounds=2)) == first
    assert again.ran == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"variants": ()}, "variants must have at least one value"),
        ({"batches": ()}, "batches must have at least one value"),
        ({"batches": (1, 0)}, "a batch must be 1 or more, got 0"),
        ({"batches": (2, 2)}, "batches must differ"),
        ({"sizes": ((64, 64), (64, 64))}, "sizes must differ"),
        ({"variants": (TWO, TWO)}, "variants must differ"),
        ({"variants": (TWO, Variant("I=2 B=0", DeepCacheConfig(4)))}, "two variants are called 'I=2 B=0'"),
        ({"steps": 1}, "steps must be 2 or more, got 1"),
        ({"rounds": 0}, "rounds must be 1 or more, got 0"),
        ({"warm_up": -1}, "warm_up must be 0 or more, got -1"),
        (
            {"modes": ("fast",)},
            "captured, autotuned, openvino and onnx, got 'fast'",
        ),
        ({"scopes": ("vae",)}, "scopes are pipeline and unet, got 'vae'"),
        ({"scopes": ()}, "scopes must have at least one value"),
        ({"guidance": float("nan")}, "guidance must be a number >= 0, got nan"),
        ({"guidance": -1.0}, "guidance must be a number >= 0, got -1"),
        ({"seed": -1}, "seed must be between 0 and 2**63 - 1, got -1"),
        ({"seed": 2**63}, "seed must be between 0"),
        ({"sizes": ((65, 64),)}, "multiples of 8, got 65x64"),
        ({"sizes": ((64, 0),)}, "multiples of 8, got 64x0"),
    ],
)
def test_values_out_of_range_are_refused(changed, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        BenchmarkSettings(**changed)


def test_captured_graphs_require_a_cuda_device(tmp_path, model, clock):
    model(unconditional_pipeline)
    clock()
    with pytest.raises(ValueError, match="the mode captured captures CUDA graphs, and the device is cpu"):
        run(tmp_path, settings(modes=("eager", "captured")))
