"""The steps of a run taken one by one, and what is made of a profile of them."""

from __future__ import annotations

import gzip
import json
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.autograd import DeviceType
from torch.autograd.profiler_util import Interval

from DeepCache.bench import profiled_steps
from DeepCache.bench.contestants import DEEPCACHE, Contestant
from DeepCache.bench.kinds_of_work import (
    ATTENTION,
    COMPILED,
    CONVOLUTION,
    DEEPCACHE_ITSELF,
    ELEMENTWISE,
    KINDS,
    LINEAR,
    NORMALISATION,
    REST,
)
from DeepCache.bench.profiled_steps import PASSES, StepRun, profile_steps, split
from DeepCache.bench.profiles import _contestant
from DeepCache.bench.variants import parse_variant
from DeepCache.bench.workload import PipelineCall
from tests.bench.small_models import unconditional_pipeline
from tests.engine.backend import use_backend
from tests.engine.slots import kept_slots
from tests.tune.small_pipeline import small_pipeline

FULL, SHALLOW = "full step", "shallow step at branch 0"
# Trajectories of five steps under I=3, until five steps were full.
TAKEN = [FULL, SHALLOW, SHALLOW, FULL, SHALLOW] * 2 + [FULL]

pytestmark = pytest.mark.usefixtures("remembered_costs")


def run_of(pipe, text="I=3", steps=5, mode="eager"):
    variant = parse_variant(text)
    names = [FULL if step.full else SHALLOW for step in variant.config.steps(steps)]
    return StepRun(_contestant(pipe, PipelineCall(1, (16, 16), steps), variant, mode), names)


# Taking steps


def test_every_kind_of_step_is_taken_five_times_or_more_and_is_what_it_is_called():
    pipe = small_pipeline()
    taken, deep = [], []
    # All contestants have copies of it.
    pipe.unet.mid_block.register_forward_hook(lambda *_: deep.append(len(taken)))

    @contextmanager
    def around(name):
        yield
        taken.append(name)

    run = run_of(pipe)
    deep.clear()
    run(around)
    assert taken == TAKEN
    assert [taken[number] for number in deep] == [FULL] * 5


def test_nothing_is_kept_when_the_steps_were_taken():
    pipe = small_pipeline()
    run = run_of(pipe)
    run(lambda name: nullcontext())
    assert not kept_slots(run._contestant._engine)


@pytest.mark.parametrize("make", [small_pipeline, unconditional_pipeline])
def test_steps_give_what_the_contestant_gives(make):
    pipe = make()
    variant, call = parse_variant("I=2 linear"), PipelineCall(1, (16, 16), 4)
    contestant = Contestant(pipe, DEEPCACHE, call, variant, unet_only=True)
    expected, found = [], []
    handle = contestant.pipe.unet.register_forward_hook(lambda _, args, output: expected.append(output[0]))
    contestant.run()
    handle.remove()
    contestant.release()
    run = StepRun(contestant, [FULL, SHALLOW] * 2)
    contestant.pipe.unet.register_forward_hook(lambda _, args, output: found.append(output[0]))
    run(lambda name: nullcontext())
    assert len(expected) == 4
    for given, wanted in zip(found, [*expected, *expected, *expected[:2]], strict=True):
        assert torch.equal(given, wanted)


# A profile


def test_a_profile_has_every_step_by_its_name_and_splits_it(tmp_path):
    told = []
    run = run_of(small_pipeline())
    trace = tmp_path / "trace.json.gz"
    steps = profile_steps([run], trace, lambda: told.append(1))
    assert len(told) == PASSES
    assert [step["step"] for step in steps] == [FULL, SHALLOW]
    for step in steps:
        assert len(step["seconds"]) == len(step["profiled_seconds"]) == TAKEN.count(step["step"])
        assert min(step["seconds"]) > 0
        by_kind = {kind: figures["seconds"] for kind, figures in step["kinds"].items()}
        assert tuple(by_kind) == KINDS
        sums = [sum(each) for each in zip(*by_kind.values(), strict=True)]
        assert sums == pytest.approx(step["profiled_seconds"], abs=1e-8)
        assert sum(figures["share"] for figures in step["kinds"].values()) == pytest.approx(1)
        assert by_kind[DEEPCACHE_ITSELF] == step["hooks_seconds"]
        for kind in (CONVOLUTION, LINEAR, NORMALISATION, ELEMENTWISE, DEEPCACHE_ITSELF, REST):
            assert min(by_kind[kind]) > 0, kind
        assert set(by_kind[COMPILED]) == {0}
    # Attention is in the deep part alone.
    assert min(steps[0]["kinds"][ATTENTION]["seconds"]) > 0
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    ranges = [event for event in events if event.get("cat") == "user_annotation"]
    named = [event for event in ranges if event["name"] in (FULL, SHALLOW)]
    assert [event["name"] for event in sorted(named, key=lambda event: event["ts"])] == TAKEN
    # Before every call of the U-Net and after it.
    assert [event["name"] for event in ranges].count("DeepCache") == 2 * len(named)
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json.gz"]


def test_steps_of_one_name_are_of_one_kind_whatever_run_they_are_of(tmp_path):
    pipe = unconditional_pipeline()
    steps = profile_steps([run_of(pipe), run_of(pipe, "I=2")], tmp_path / "trace.json.gz")
    assert [(step["step"], len(step["seconds"]), len(step["profiled_seconds"])) for step in steps] == [
        (FULL, 5 + 7, 5 + 7),
        (SHALLOW, 6 + 5, 6 + 5),
    ]


def test_naming_the_hooks_adds_no_graph(monkeypatch):
    counter = use_backend(monkeypatch, CompileCounter())
    run = run_of(unconditional_pipeline(), mode="compiled")
    for _ in range(PASSES):
        run(lambda name: nullcontext())
        assert counter.frame_count == 2
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiled_kernels_tell_what_they_take(tmp_path):
    torch.compiler.reset()
    steps = profile_steps([run_of(unconditional_pipeline(), mode="compiled")], tmp_path / "trace.json.gz")
    for step in steps:
        for kind in (CONVOLUTION, COMPILED, DEEPCACHE_ITSELF, REST):
            assert min(step["kinds"][kind]["seconds"]) > 0, kind
    torch.compiler.reset()


# Splitting what the profiler tells, made up here


def event(name, begin, end, *parts, device=DeviceType.CPU, annotation=False, kernels=()):
    """One that has its own time to itself but for its parts."""
    return SimpleNamespace(
        name=name,
        time_range=Interval(begin, end),
        self_cpu_time_total=end - begin - sum(part.time_range.elapsed_us() for part in parts),
        cpu_children=list(parts),
        kernels=[SimpleNamespace(name=kernel, duration=duration) for kernel, duration in kernels],
        device_type=device,
        is_user_annotation=annotation,
    )


def on_gpu(name, begin, end, annotation=False):
    return event(name, begin, end, device=DeviceType.CUDA, annotation=annotation)


def test_on_the_cpu_the_kinds_are_of_the_profiled_steps_and_medians_are_taken_over_them():
    steps = [
        event(
            FULL,
            start,
            start + 1000,
            event("DeepCache", start, start + 10),
            event("aten::conv2d", start + 10, start + 10 + convolution),
        )
        for start, convolution in ((0, 500), (2000, 300), (4000, 700))
    ]
    (found,) = split(
        [*steps, event("another range", 9000, 9999)], {FULL: [0.0004, 0.0002, 0.0003, 0.0009]}, device="cpu"
    )
    assert found["step"] == FULL
    assert found["seconds"] == [0.0004, 0.0002, 0.0003, 0.0009]
    assert found["median"] == pytest.approx(0.00035)
    assert found["profiled_seconds"] == [0.001] * 3
    assert found["hooks_seconds"] == [0.00001] * 3
    assert found["kinds"][CONVOLUTION] == {"seconds": [0.0005, 0.0003, 0.0007], "median": 0.0005, "share": 0.5}
    assert found["kinds"][DEEPCACHE_ITSELF] == {"seconds": [0.00001] * 3, "median": 0.00001, "share": 0.01}
    assert found["kinds"][REST] == {"seconds": [0.00049, 0.00069, 0.00029], "median": 0.00049, "share": 0.49}
    assert found["kinds"][ATTENTION] == {"seconds": [0, 0, 0], "median": 0, "share": 0}


def test_on_a_gpu_the_kinds_are_of_the_kernels_and_the_rest_is_what_they_leave_of_the_time_without_the_profiler():
    full = event(
        FULL,
        0,
        1000,
        event("DeepCache", 0, 50),
        event("aten::conv2d", 100, 200, kernels=[("conv", 60.0)]),
        event("aten::add", 200, 300, kernels=[("elementwise", 20.0)]),
    )
    shallow = event(SHALLOW, 1000, 1500, event("aten::conv2d", 1100, 1200, kernels=[("conv", 30.0)]))
    on_device = [
        on_gpu(FULL, 150, 900, annotation=True),
        on_gpu("conv", 150, 210),
        on_gpu("elementwise", 850, 870),
        # Of a CUDA graph.
        on_gpu("flash_fwd_kernel", 880, 890),
        on_gpu(SHALLOW, 1150, 1180, annotation=True),
        on_gpu("conv", 1150, 1180),
    ]
    found, other = split([full, shallow, *on_device], {FULL: [0.0001], SHALLOW: [0.00002]}, device="cuda")
    medians = {kind: figures["median"] for kind, figures in found["kinds"].items() if figures["median"]}
    assert medians == {CONVOLUTION: 0.00006, ATTENTION: 0.00001, ELEMENTWISE: 0.00002, REST: 0.00001}
    assert found["kinds"][CONVOLUTION]["share"] == pytest.approx(0.6)
    assert (found["profiled_seconds"], found["hooks_seconds"]) == ([0.001], [0.00005])
    # Kernels never leave less than nothing.
    assert other["kinds"][CONVOLUTION] == {"seconds": [0.00003], "median": 0.00003, "share": 1}
    assert other["kinds"][REST] == {"seconds": [0], "median": 0, "share": 0}


def test_a_gpu_that_the_profiler_does_not_see_is_told():
    with pytest.raises(OSError, match=r"sees no kernel of the cuda device.*CUPTI"):
        split([event(FULL, 0, 10)], {FULL: [0.1]}, device="cuda")


def test_steps_on_a_gpu_are_timed_by_its_events_and_waited_for_once(monkeypatch):
    clock = iter(range(100))
    waited = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            assert stream == "the stream"
            self.at = next(clock)

        def elapsed_time(self, end):
            return 1000.0 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the stream")
    monkeypatch.setattr(profiled_steps, "wait_for_device", waited.append)
    device = torch.device("cuda")
    watch = profiled_steps._Stopwatch(device)
    for name in (FULL, SHALLOW, FULL):
        with watch(name):
            next(clock)
    assert waited == []
    assert watch.seconds() == {FULL: [2.0, 2.0], SHALLOW: [2.0]}
    assert waited == [device]
