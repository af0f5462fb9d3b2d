"""The kinds of work that the time of a step goes into, told by the names of the operations and kernels in a profile."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = [
    "COMPILED",
    "DEEPCACHE_ITSELF",
    "HOOKS",
    "KINDS",
    "REST",
    "cpu_time_by_kind",
    "device_time_by_kind",
    "kind_of_kernel",
    "kind_of_operation",
]

CONVOLUTION = "convolution"
ATTENTION = "attention"
LINEAR = "linear layers"
NORMALISATION = "normalisation"
ELEMENTWISE = "elementwise and copies"
COMPILED = "compiled kernels"
DEEPCACHE_ITSELF = "DeepCache itself"
REST = "the rest"

KINDS = (CONVOLUTION, ATTENTION, LINEAR, NORMALISATION, ELEMENTWISE, COMPILED, DEEPCACHE_ITSELF, REST)
"""All kinds, in the order in which they are shown."""

HOOKS = "DeepCache"
"""The name in a profile of what DeepCache's hooks do."""

# The first that is found in a name holds: the name of a compiled kernel lists all that is fused in it, and a matrix
# product of whole batches is what attention is made of where it is no operation of its own. An operation has its
# namespace in its name; a range that is called something has not.
_OPERATIONS = (
    (DEEPCACHE_ITSELF, rf"^{HOOKS}$"),
    (COMPILED, r"^(graph_\d+_)?(cpp|triton)_"),
    (CONVOLUTION, r"::.*conv(olution|\d)"),
    (ATTENTION, r"::.*(attention|attn|softmax|bmm)"),
    (LINEAR, r"::(.*[^a-z])?linear|::.*(addmm|mm$)"),
    (NORMALISATION, r"::.*_norm"),
    (ELEMENTWISE, r"::"),
)
_KERNELS = (
    (COMPILED, r"^triton_"),
    (ATTENTION, r"attention|attn|flash|fmha|sdpa|softmax"),
    (CONVOLUTION, r"conv(?!ert)|cudnn|fprop|dgrad|wgrad|winograd|nchw"),
    (LINEAR, r"gemm|gemv|cutlass|cublas|nvjet|splitk"),
    (NORMALISATION, r"norm(?!al)|rowwisemoments|computefusedparams"),
    (ELEMENTWISE, r""),
)
# All that is done within one of these is part of it: the copies that a convolution makes, and DeepCache's arithmetic.
_ENTIRE = {CONVOLUTION, ATTENTION, LINEAR, NORMALISATION, DEEPCACHE_ITSELF}


def kind_of_operation(name: str) -> str:
    """The kind of work of an operation or a named range; `REST` for what is neither PyTorch's nor compiled.

    Example:
        >>> kind_of_operation("aten::addmm"), kind_of_operation("graph_0_cpp_fused_add_native_group_norm_6")
        ('linear layers', 'compiled kernels')
    """
    return next((kind for kind, pattern in _OPERATIONS if re.search(pattern, name)), REST)


def kind_of_kernel(name: str) -> str:
    """The kind of work of a kernel of a CUDA device.

    Example:
        >>> kind_of_kernel("sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc")
        'convolution'
    """
    return next(kind for kind, pattern in _KERNELS if re.search(pattern, name, re.IGNORECASE))


def cpu_time_by_kind(step: Any) -> dict[str, float]:
    """What the operations of a step took on the CPU. The kinds add up to the time of the step: `REST` is what no
    operation of PyTorch has, Python above all.

    Args:
        step: the event of the step in `torch.profiler.profile().events()`, with what happened within it.

    Returns:
        Microseconds of every kind.
    """
    spent = dict.fromkeys(KINDS, 0.0)
    for operation, kind in _operations(step):
        spent[kind] += operation.self_cpu_time_total
    return spent


def device_time_by_kind(step: Any, kernels: Iterable[Any]) -> dict[str, float]:
    """What the kernels of a step took on the device. A kernel is of the kind of the operation that launched it; where
    none did, as in a CUDA graph, its name tells.

    Args:
        step: the event of the step, as for `cpu_time_by_kind`.
        kernels: the events of all kernels that ran in it.

    Returns:
        Microseconds of every kind.
    """
    spent = dict.fromkeys(KINDS, 0.0)
    left: Counter[str] = Counter()
    for kernel in kernels:
        left[kernel.name] += kernel.time_range.elapsed_us()
    for operation, kind in _operations(step):
        for kernel in operation.kernels:
            left[kernel.name] -= kernel.duration
            spent[kind_of_kernel(kernel.name) if kind == REST else kind] += kernel.duration
    for name, time in left.items():
        spent[kind_of_kernel(name)] += max(0.0, time)
    return spent


def _operations(operation: Any, around: str = REST) -> Iterator[tuple[Any, str]]:
    """An operation and all within it, each with its kind."""
    kind = around if around in _ENTIRE else kind_of_operation(operation.name)
    yield operation, kind
    for part in operation.cpu_children:
        yield from _operations(part, kind)
