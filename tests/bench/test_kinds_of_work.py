"""Which kind of work an operation or a kernel is, and how the time of a step is split by them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch.autograd.profiler_util import Interval

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
    cpu_time_by_kind,
    device_time_by_kind,
    kind_of_kernel,
    kind_of_operation,
)

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
def test_an_operation_is_of_the_kind_that_its_name_says(kind, name):
    assert kind_of_operation(name) == kind


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in KERNELS.items() for name in names])
def test_a_kernel_is_of_the_kind_that_its_name_says(kind, name):
    assert kind_of_kernel(name) == kind


def operation(name, microseconds, *parts, kernels=()):
    """What the profiler tells of an operation: its own time, what was done within it, and what it launched."""
    launched = [SimpleNamespace(name=kernel, duration=duration) for kernel, duration in kernels]
    return SimpleNamespace(name=name, self_cpu_time_total=microseconds, cpu_children=list(parts), kernels=launched)


def kernel(name, begin, end):
    return SimpleNamespace(name=name, time_range=Interval(begin, end))


def spent(**microseconds):
    named = {"elementwise": ELEMENTWISE, "linear": LINEAR, "deepcache": DEEPCACHE_ITSELF, "rest": REST}
    given = {named.get(name, name): value for name, value in microseconds.items()}
    return {kind: given.get(kind, 0) for kind in KINDS}


def test_what_is_done_within_an_operation_is_part_of_its_work():
    step = operation(
        "full step",
        100,
        operation("DeepCache", 7, operation("aten::mul", 2), operation("aten::linear", 1)),
        operation("aten::conv2d", 1, operation("aten::mkldnn_convolution", 50, operation("aten::copy_", 4))),
        operation("aten::scaled_dot_product_attention", 1, operation("aten::softmax", 5), operation("aten::add", 6)),
        operation("aten::linear", 2, operation("aten::t", 3), operation("aten::addmm", 20)),
        operation("aten::group_norm", 1, operation("aten::native_group_norm", 8, operation("aten::empty", 1))),
    )
    assert cpu_time_by_kind(step) == spent(
        deepcache=10, convolution=55, attention=12, linear=25, normalisation=10, rest=100
    )


def test_what_is_done_within_a_graph_or_a_copy_is_of_its_own_kind():
    graph = operation(
        "## Call CompiledFxGraph abc ##",
        9,
        operation("graph_0_cpp_fused_silu_0", 3),
        operation("aten::convolution", 30),
    )
    step = operation("shallow step at branch 0", 5, graph, operation("aten::matmul", 2, operation("aten::mm", 4)))
    assert cpu_time_by_kind(step) == spent(**{COMPILED: 3}, convolution=30, linear=4, elementwise=2, rest=14)


def test_a_kernel_is_of_the_kind_of_the_operation_that_launched_it():
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
    assert device_time_by_kind(step, kernels) == spent(convolution=42, linear=10, deepcache=1)


def test_a_kernel_that_no_operation_launched_is_of_the_kind_that_its_name_says():
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
    assert device_time_by_kind(step, kernels) == expected
