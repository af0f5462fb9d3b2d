"""Runs the steps of benchmark cases one by one, without a profiler and with it, and splits their time by kind of work.

`key_averages` of PyTorch's profiler averages over all steps and counts what an operation calls apart from it, so the
events are grouped here: by step, and by the outermost operation of a kind.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, record_function

from DeepCache.bench.benchmark_case import BenchmarkCase
from DeepCache.engine.unets import unets_of
from DeepCache.models.device import wait_for_device

__all__ = ["KINDS", "PASSES", "name_hooks", "profile_steps", "run_steps", "split"]

PASSES = 3
"""How often `profile_steps` runs each case: as a warm-up, without the profiler, and with it."""

CONVOLUTION = "convolution"
ATTENTION = "attention"
LINEAR = "linear layers"
NORMALISATION = "normalisation"
ELEMENTWISE = "elementwise and copies"
COMPILED = "compiled kernels"
DEEPCACHE_ITSELF = "DeepCache itself"
REST = "the rest"

KINDS = (CONVOLUTION, ATTENTION, LINEAR, NORMALISATION, ELEMENTWISE, COMPILED, DEEPCACHE_ITSELF, REST)
"""All kinds of work, in the order in which they are shown."""

# How often each kind of step runs in a pass. A median of five ignores two outliers, and a CUDA graph is replayed from
# the third run on.
_SAMPLES = 5

# The range in a profile of what DeepCache's hooks do.
_HOOKS = "DeepCache"

# The first match decides: the name of a compiled kernel lists all operations fused in it, and attention without an
# operation of its own consists of batched matrix products. Operations have a namespace in their names, ranges do not.
_OPERATIONS = (
    (DEEPCACHE_ITSELF, rf"^{_HOOKS}$"),
    (COMPILED, r"^(graph_\d+_)?(cpp|triton)_"),
    (CONVOLUTION, r"::.*conv(olution|\d)"),
    (ATTENTION, r"::.*(attention|attn|softmax|bmm)"),
    (LINEAR, r"::(.*[^a-z])?linear|::.*(addmm|mm$)"),
    (NORMALISATION, r"::.*_norm"),
    (ELEMENTWISE, r"::"),
    (REST, r""),
)
_KERNELS = (
    (COMPILED, r"^triton_"),
    (ATTENTION, r"attention|attn|flash|fmha|sdpa|softmax"),
    (CONVOLUTION, r"conv(?!ert)|cudnn|fprop|dgrad|wgrad|winograd|nchw"),
    (LINEAR, r"gemm|gemv|cutlass|cublas|nvjet|splitk"),
    (NORMALISATION, r"norm(?!al)|rowwisemoments|computefusedparams"),
    (ELEMENTWISE, r""),
)
# Everything within an operation of these kinds belongs to it, such as the copies of a convolution.
_ENTIRE = {CONVOLUTION, ATTENTION, LINEAR, NORMALISATION, DEEPCACHE_ITSELF}

Around = Callable[[str], AbstractContextManager[None]]


def profile_steps(
    runs: Sequence[tuple[BenchmarkCase, Sequence[str]]], trace: Path, after_each: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Runs the steps of cases without the profiler and with it, and writes a chrome trace.

    Args:
        runs: cases with DeepCache on the same device, each with the names of its steps. Their U-Nets get hooks.
        trace: the file of the trace, which ends in `.json.gz`.
        after_each: called `PASSES` times for each case.

    Returns:
        See `split`.

    Raises:
        OSError: the trace cannot be written, or the profiler sees no kernel of the device.
    """
    device = runs[0][0].device
    watch = _Stopwatch(device)
    for case, _ in runs:
        name_hooks(case)

    def run_all(around: Around) -> None:
        for case, names in runs:
            run_steps(case, names, around)
            after_each()

    with _profiled_cpu_kernels() if device.type == "cpu" else nullcontext():
        run_all(lambda name: nullcontext())
    run_all(watch)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        run_all(partial(_range, device=device))
    unfinished = trace.with_name(f"unfinished-{trace.name}")
    profiler.export_chrome_trace(str(unfinished))
    unfinished.replace(trace)
    return split(profiler.events(), watch.seconds(), device.type)


@torch.no_grad()
def run_steps(case: BenchmarkCase, names: Sequence[str], around: Around) -> None:
    """Runs until every kind of step has run often enough, each within the context that `around` makes of its name."""
    left = Counter(dict.fromkeys(names, _SAMPLES))
    while +left:
        for name, call in zip(names, case.loop.each(case.pipe), strict=True):
            with around(name):
                call()
            left[name] -= 1
            if not +left:
                break
        case.release()


def name_hooks(case: BenchmarkCase) -> None:
    """Makes ranges in a profile of what DeepCache's hooks do before and after a call of the U-Net."""
    unet = getattr(case.pipe, next(iter(unets_of(case.pipe))))
    ranges: list[record_function] = []

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def begin(*_: object) -> None:
        ranges.append(record_function(_HOOKS))
        ranges[-1].__enter__()  # type: ignore[no-untyped-call]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def end(*_: object) -> None:
        ranges.pop().__exit__(None, None, None)

    unet.register_forward_pre_hook(begin, prepend=True)
    unet.register_forward_pre_hook(end)
    unet.register_forward_hook(begin, prepend=True)
    unet.register_forward_hook(end)


def split(events: Iterable[Any], seconds: dict[str, list[float]], device: str) -> list[dict[str, Any]]:
    """Splits the time of every kind of step by kind of work.

    On the CPU this is the time of the profiled steps. On a CUDA device it is the time of the kernels, which the
    profiler hardly delays, and the rest is the remaining time of the steps without the profiler.

    Args:
        events: the events of the profiler.
        seconds: the seconds of the steps without the profiler, by name.
        device: the type of the device.

    Returns:
        The figures of every kind of step, raw and as medians, in seconds.

    Raises:
        OSError: the events have no kernel of the device.
    """
    events = list(events)
    steps = [event for event in events if event.device_type == DeviceType.CPU and event.name in seconds]
    kernels = [event for event in events if event.device_type != DeviceType.CPU and not event.is_user_annotation]
    if device != "cpu" and not kernels:
        raise OSError(
            f"PyTorch's profiler sees no kernel of the {device} device: another profiler may use it, or CUPTI is "
            "missing; try without --profile"
        )
    found = []
    for name, unprofiled in seconds.items():
        named = [step for step in steps if step.name == name]
        on_cpu = [_cpu_time(step) for step in named]
        times = on_cpu
        if device != "cpu":
            times = [_device_time(step, kernels) for step in named]
            for spent in times:
                spent[REST] = max(0.0, 1e6 * median(unprofiled) - sum(spent.values()))
        medians = {kind: median(spent[kind] for spent in times) for kind in KINDS}
        found.append(
            {
                "step": name,
                "seconds": _seconds(1e6 * each for each in unprofiled),
                "median": round(median(unprofiled), 9),
                "profiled_seconds": _seconds(step.time_range.elapsed_us() for step in named),
                "hooks_seconds": _seconds(spent[DEEPCACHE_ITSELF] for spent in on_cpu),
                "kinds": {
                    kind: {
                        "seconds": _seconds(spent[kind] for spent in times),
                        "median": round(medians[kind] / 1e6, 9),
                        "share": medians[kind] / sum(medians.values()),
                    }
                    for kind in KINDS
                },
            }
        )
    return found


def kind_of_operation(name: str) -> str:
    """The kind of work of an operation or a named range; `REST` for what is neither PyTorch's nor compiled."""
    return next(kind for kind, pattern in _OPERATIONS if re.search(pattern, name))


def kind_of_kernel(name: str) -> str:
    """The kind of work of a kernel of a CUDA device."""
    return next(kind for kind, pattern in _KERNELS if re.search(pattern, name, re.IGNORECASE))


def _cpu_time(step: Any) -> dict[str, float]:
    """Microseconds on the CPU of each kind; their sum is the time of the step, and `REST` is mostly Python."""
    spent = dict.fromkeys(KINDS, 0.0)
    for operation, kind in _operations(step):
        spent[kind] += operation.self_cpu_time_total
    return spent


def _device_time(step: Any, kernels: Iterable[Any]) -> dict[str, float]:
    """Microseconds of each kind of the kernels in a step. A kernel has the kind of the operation that launched it, or
    one by its own name if none did, as in a CUDA graph."""
    spent = dict.fromkeys(KINDS, 0.0)
    left: Counter[str] = Counter()
    for kernel in kernels:
        # The next step starts when the device is done with this one.
        if step.time_range.start <= kernel.time_range.start <= step.time_range.end:
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


def _seconds(microseconds: Iterable[float]) -> list[float]:
    return [round(each / 1e6, 9) for each in microseconds]


class _Stopwatch:
    """Times each step; on a CUDA device with events, so that nothing waits for it between steps."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._times: list[tuple[str, Any, Any]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = self._now()
        yield
        self._times.append((name, begin, self._now()))

    def seconds(self) -> dict[str, list[float]]:
        """The seconds of the steps by name."""
        wait_for_device(self._device)
        found: dict[str, list[float]] = {}
        for name, begin, end in self._times:
            passed = begin.elapsed_time(end) / 1000 if self._device.type == "cuda" else end - begin
            found.setdefault(name, []).append(passed)
        return found

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event


@contextmanager
def _range(name: str, device: torch.device) -> Iterator[None]:
    """A range of a step in a profile, which ends when the device is done."""
    with record_function(name):
        yield
        wait_for_device(device)


def _profiled_cpu_kernels() -> AbstractContextManager[None]:
    """Has kernels that are compiled for a CPU report to the profiler."""
    from torch._inductor import config

    patched: AbstractContextManager[None] = config.patch({"cpp.enable_kernel_profile": True})
    return patched
