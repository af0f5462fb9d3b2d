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
from DeepCache.bench.benchmark_case import DEEPCACHE, BenchmarkCase
from DeepCache.bench.profiled_steps import (
    ATTENTION,
    COMPILED,
    CONVOLUTION,
    DEEPCACHE_ITSELF,
    ELEMENTWISE,
    KINDS,
    LINEAR,
    NORMALISATION,
    PASSES,
    REST,
    kind_of_kernel,
    kind_of_operation,
    name_hooks,
    profile_steps,
    run_steps,
    split,
)
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
    call = PipelineCall(1, (16, 16), steps)
    return BenchmarkCase(pipe, DEEPCACHE, call, variant, unet_only=True, mode=mode), names


# Kinds of work


OPERATIONS = {
    CONVOLUTION: (
        *("aten::conv2d", "aten::conv3d", "aten::convolution", "aten::_convolution", "aten::mkldnn_convolution"),
        *("aten::cudnn_convolution", "aten::_slow_conv2d_forward", "mkldnn::_convolution_pointwise"),
    ),
    ATTENTION: (
        *("aten::scaled_dot_product_attention", "aten::_scaled_dot_product_flash_attention_for_cpu"),
        *("aten::_efficient_attention_forward", "xformers::efficient_attention_forward_cutlass"),
        *("flash_attn::_flash_attn_forward", "aten::softmax", "aten::bmm", "aten::baddbmm"),
    ),
    LINEAR: (
        *("aten::linear", "aten::addmm", "aten::mm", "aten::_addmm_activation", "mkl::_mkl_linear"),
        *("mkldnn::_linear_pointwise", "aten::_scaled_mm"),
    ),
    NORMALISATION: (
        *("aten::group_norm", "aten::native_group_norm", "aten::layer_norm", "aten::native_layer_norm"),
        "aten::rms_norm",
    ),
    ELEMENTWISE: (
        *("aten::add", "aten::mul", "aten::silu", "aten::gelu", "aten::cat", "aten::copy_", "aten::to", "aten::view"),
        *(
            "aten::upsample_nearest2d",
            "aten::upsample_bilinear2d",
            "aten::normal_",
            "aten::matmul",
            "torchvision::roll",
        ),
    ),
    COMPILED: (
        *("graph_1_cpp_fused_native_layer_norm_permute_view_7", "cpp_fused_convolution_silu_0"),
        *("triton_red_fused_native_group_norm_silu_3", "triton_tem_fused_addmm_1"),
    ),
    DEEPCACHE_ITSELF: ("DeepCache",),
    REST: (
        *("full step", "shallow step at branch 0, linear forecast, guidance reuse"),
        *("cudaLaunchKernel", "TorchDynamo Cache Lookup"),
        *("Torch-Compiled Region: 0/1", "## Call CompiledFxGraph fz2vunvu45ygjuh24ysyrp ##", "Pregraph bytecode"),
    ),
}
KERNELS = {
    CONVOLUTION: (
        "sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x128x32",
        "cudnn_infer_ampere_scudnn_winograd_128x128_ldg1_ldg4_mobile_relu_tile148t_nt_v0",
        "void cudnn::engines_precompiled::nchwToNhwcKernel<__half, __half, float, false, true>",
        "void implicit_convolve_sgemm<float, float, 1024, 5, 5, 3, 3, 3, 1, true, false, true>",
    ),
    ATTENTION: (
        "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4>>",
        "fmha_cutlassF_f16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel)",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_6_128x64x80",
        "void (anonymous namespace)::softmax_warp_forward<c10::Half, c10::Half, float, 7>",
    ),
    LINEAR: (
        "ampere_fp16_s16816gemm_fp16_128x64_ldg8_f2f_stages_64x3_tn",
        "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT",
        "void cutlass::Kernel2<cutlass_80_wmma_tensorop_f16_s161616gemm_f16_32x32_128x2_tn_align8>",
        "void cublasLt::splitKreduce_kernel<32, 16, int, float, __half, float>",
        "void gemv2T_kernel_val<int, int, __half, __half, __half, float, 128, 16, 4, 4, false>",
    ),
    NORMALISATION: (
        "void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<c10::Half>",
        "void at::native::(anonymous namespace)::ComputeFusedParamsCUDAKernel<c10::Half>",
        "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::Half, float>",
    ),
    ELEMENTWISE: (
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::Half>>",
        "void at::native::(anonymous namespace)::CatArrayBatchedCopy<OpaqueType<2u>, unsigned int, 4, 64, 64>",
        "void at::native::(anonymous namespace)::upsample_nearest2d_nhwc_out_frame<c10::Half, double>",
        "void at::native::(anonymous namespace)::distribution_elementwise_grid_stride_kernel<normal_and_transform>",
        *("Memcpy DtoD (Device -> Device)", "Memset (Device)"),
    ),
    COMPILED: ("triton_poi_fused_convolution_silu_4", "triton_red_fused_native_group_norm_2"),
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in OPERATIONS.items() for name in names])
def test_the_name_of_an_operation_gives_its_kind(kind, name):
    assert kind_of_operation(name) == kind


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in KERNELS.items() for name in names])
def test_the_name_of_a_kernel_gives_its_kind(kind, name):
    assert kind_of_kernel(name) == kind


# Running steps


def test_every_kind_of_step_runs_at_least_five_times_under_its_name():
    pipe = small_pipeline()
    taken, deep = [], []
    # All cases have copies of it.
    pipe.unet.mid_block.register_forward_hook(lambda *_: deep.append(len(taken)))

    @contextmanager
    def around(name):
        yield
        taken.append(name)

    case, names = run_of(pipe)
    deep.clear()
    run_steps(case, names, around)
    assert taken == TAKEN
    assert [taken[number] for number in deep] == [FULL] * 5


def test_nothing_is_kept_after_the_steps():
    pipe = small_pipeline()
    case, names = run_of(pipe)
    run_steps(case, names, lambda name: nullcontext())
    assert not kept_slots(case._engine)


@pytest.mark.parametrize("make", [small_pipeline, unconditional_pipeline])
def test_steps_have_the_outputs_of_a_run(make):
    pipe = make()
    variant, call = parse_variant("I=2 linear"), PipelineCall(1, (16, 16), 4)
    case = BenchmarkCase(pipe, DEEPCACHE, call, variant, unet_only=True)
    expected, found = [], []
    handle = case.pipe.unet.register_forward_hook(lambda _, args, output: expected.append(output[0]))
    case.run()
    handle.remove()
    case.release()
    case.pipe.unet.register_forward_hook(lambda _, args, output: found.append(output[0]))
    run_steps(case, [FULL, SHALLOW] * 2, lambda name: nullcontext())
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


def test_steps_with_one_name_are_one_kind_across_cases(tmp_path):
    pipe = unconditional_pipeline()
    steps = profile_steps([run_of(pipe), run_of(pipe, "I=2")], tmp_path / "trace.json.gz")
    assert [(step["step"], len(step["seconds"]), len(step["profiled_seconds"])) for step in steps] == [
        (FULL, 5 + 7, 5 + 7),
        (SHALLOW, 6 + 5, 6 + 5),
    ]


def test_naming_the_hooks_adds_no_graph(monkeypatch):
    counter = use_backend(monkeypatch, CompileCounter())
    case, names = run_of(unconditional_pipeline(), mode="compiled")
    name_hooks(case)
    for _ in range(PASSES):
        run_steps(case, names, lambda name: nullcontext())
        assert counter.frame_count == 2
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiled_kernels_report_their_time(tmp_path):
    torch.compiler.reset()
    steps = profile_steps([run_of(unconditional_pipeline(), mode="compiled")], tmp_path / "trace.json.gz")
    for step in steps:
        for kind in (CONVOLUTION, COMPILED, DEEPCACHE_ITSELF, REST):
            assert min(step["kinds"][kind]["seconds"]) > 0, kind
    torch.compiler.reset()


# Splitting what the profiler tells, synthetic here


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


def test_on_the_cpu_kinds_split_the_profiled_steps_with_medians():
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


def test_on_a_gpu_kinds_split_the_kernels_and_the_rest_is_the_remaining_unprofiled_time():
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


def test_a_gpu_that_the_profiler_does_not_see_is_an_error():
    with pytest.raises(OSError, match=r"sees no kernel of the cuda device.*CUPTI"):
        split([event(FULL, 0, 10)], {FULL: [0.1]}, device="cuda")


def test_steps_on_a_gpu_are_timed_with_events_and_one_wait(monkeypatch):
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


def operation(name, microseconds, *parts, kernels=()):
    """What the profiler reports for an operation: its own time, what was done within it, and what it launched."""
    launched = [SimpleNamespace(name=kernel, duration=duration) for kernel, duration in kernels]
    return SimpleNamespace(
        name=name,
        time_range=Interval(0, 1000),
        self_cpu_time_total=microseconds,
        cpu_children=list(parts),
        kernels=launched,
    )


def kernel(name, begin, end):
    return SimpleNamespace(name=name, time_range=Interval(begin, end))


def spent(**microseconds):
    named = {"elementwise": ELEMENTWISE, "linear": LINEAR, "deepcache": DEEPCACHE_ITSELF, "rest": REST}
    given = {named.get(name, name): value for name, value in microseconds.items()}
    return {kind: given.get(kind, 0) for kind in KINDS}


def test_work_within_an_operation_belongs_to_it():
    step = operation(
        "full step",
        100,
        operation("DeepCache", 7, operation("aten::mul", 2), operation("aten::linear", 1)),
        operation("aten::conv2d", 1, operation("aten::mkldnn_convolution", 50, operation("aten::copy_", 4))),
        operation("aten::scaled_dot_product_attention", 1, operation("aten::softmax", 5), operation("aten::add", 6)),
        operation("aten::linear", 2, operation("aten::t", 3), operation("aten::addmm", 20)),
        operation("aten::group_norm", 1, operation("aten::native_group_norm", 8, operation("aten::empty", 1))),
    )
    assert profiled_steps._cpu_time(step) == spent(
        deepcache=10, convolution=55, attention=12, linear=25, normalisation=10, rest=100
    )


def test_work_within_a_graph_or_a_copy_has_its_own_kind():
    graph = operation(
        "## Call CompiledFxGraph abc ##",
        9,
        operation("graph_0_cpp_fused_silu_0", 3),
        operation("aten::convolution", 30),
    )
    step = operation("shallow step at branch 0", 5, graph, operation("aten::matmul", 2, operation("aten::mm", 4)))
    assert profiled_steps._cpu_time(step) == spent(**{COMPILED: 3}, convolution=30, linear=4, elementwise=2, rest=14)


def test_a_kernel_has_the_kind_of_the_operation_that_launched_it():
    # Its own name would say that it is a linear layer, and that the copy is one.
    step = operation(
        "full step",
        100,
        operation(
            "aten::conv2d",
            30,
            operation("aten::cudnn_convolution", 20, kernels=[("ampere_gemm", 40.0)]),
            operation("aten::copy_", 5, kernels=[("elementwise_kernel", 2.0)]),
        ),
        operation("aten::addmm", 5, kernels=[("ampere_gemm", 10.0)]),
        operation("DeepCache", 50, operation("aten::add", 5, kernels=[("elementwise_kernel", 1.0)])),
    )
    kernels = [
        kernel("ampere_gemm", 0, 40),
        kernel("elementwise_kernel", 40, 42),
        kernel("ampere_gemm", 50, 60),
        kernel("elementwise_kernel", 60, 61),
    ]
    assert profiled_steps._device_time(step, kernels) == spent(convolution=42, linear=10, deepcache=1)


def test_a_kernel_without_an_operation_has_the_kind_of_its_name():
    step = operation(
        "full step",
        100,
        operation("aten::conv2d", 30, kernels=[("ampere_gemm", 40.0)]),
        kernels=[("flash_fwd_kernel", 8.0)],
    )
    # As in a CUDA graph, of whose kernels the profiler knows no more than that they ran.
    kernels = [
        kernel("ampere_gemm", 0, 40),
        kernel("ampere_gemm", 40, 45),
        kernel("triton_poi_fused_silu_0", 45, 48),
        kernel("flash_fwd_kernel", 50, 58),
    ]
    expected = spent(**{COMPILED: 3}, convolution=40, linear=5, attention=8)
    assert profiled_steps._device_time(step, kernels) == expected
