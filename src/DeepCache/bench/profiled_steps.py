"""Takes the steps of a run one by one, without a profiler and with it, and splits their time by kind of work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, record_function

from DeepCache.bench.contestants import Contestant
from DeepCache.bench.kinds_of_work import DEEPCACHE_ITSELF, HOOKS, KINDS, REST, cpu_time_by_kind, device_time_by_kind
from DeepCache.engine.unets import unets_of
from DeepCache.models.device import wait_for_device

__all__ = ["PASSES", "StepRun", "profile_steps", "split"]

PASSES = 3
"""How often `profile_steps` goes through the runs: to begin with, without the profiler, and with it."""

# Of every kind of step in each. The median minds no disturbance of two, and a CUDA graph is replayed from the third on.
_SAMPLES = 5


class StepRun:
    """Takes the steps of a contestant one by one.

    Args:
        contestant: runs DeepCache. Its U-Net gets hooks around those of DeepCache, which name them in a profile.
        names: what each of the steps is called.
    """

    def __init__(self, contestant: Contestant, names: Sequence[str]) -> None:
        self.device = contestant.device
        self._contestant = contestant
        self._names = names
        self._pipe = contestant.pipe
        self._unet: nn.Module = getattr(self._pipe, next(iter(unets_of(self._pipe))))
        _name_hooks(self._unet)

    @torch.no_grad()
    def __call__(self, around: Callable[[str], AbstractContextManager[None]]) -> None:
        """Runs until every kind of step was taken often enough, each within what `around` makes of its name."""
        wanted = Counter(dict.fromkeys(self._names, _SAMPLES))
        while +wanted:
            for name, call in zip(self._names, self._calls(), strict=True):
                with around(name):
                    call()
                wanted[name] -= 1
                if not +wanted:
                    break
            self._contestant.release()

    def _calls(self) -> Iterator[Callable[[], object]]:
        loop = self._contestant.loop
        self._pipe.scheduler.timesteps = loop.timesteps
        for timestep in loop.timesteps[loop.first :]:
            if len(loop.args) > 1:
                yield partial(self._unet, loop.args[0], timestep, *loop.args[2:], **loop.kwargs)
            else:
                yield partial(self._unet, *loop.args, **loop.kwargs | {"timestep": timestep})


def profile_steps(
    runs: Sequence[StepRun], trace: Path, after_each: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Goes through the runs without the profiler and with it, and writes a chrome trace.

    Args:
        runs: of one device.
        trace: its file, which ends in `.json.gz`.
        after_each: called `PASSES` times for each of the runs, when one was gone through.

    Returns:
        See `split`.

    Raises:
        OSError: the trace cannot be written, or the profiler sees nothing of what the device does.
    """
    device = runs[0].device
    watch = _Stopwatch(device)

    def go_through(around: Callable[[str], AbstractContextManager[None]]) -> None:
        for run in runs:
            run(around)
            after_each()

    with _kernels_that_tell(device):
        go_through(lambda name: nullcontext())
    go_through(watch)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        go_through(partial(_named, device=device))
    unfinished = trace.with_name(f"unfinished-{trace.name}")
    profiler.export_chrome_trace(str(unfinished))
    unfinished.replace(trace)
    return split(profiler.events(), watch.seconds(), device.type)


def split(events: Iterable[Any], seconds: dict[str, list[float]], device: str) -> list[dict[str, Any]]:
    """Splits the time of every kind of step by kind of work.

    On the CPU it is the time of the profiled steps. On a CUDA device it is that of the steps without the profiler,
    which delays what the CPU does and hardly the kernels: what they do not fill is the rest.

    Args:
        events: those of the profiler.
        seconds: what the steps took without it, by their name.
        device: the type of the device.

    Returns:
        For every kind of step its figures, all in seconds and all of them raw, with medians.

    Raises:
        OSError: there is no kernel of the device among the events.
    """
    events = list(events)
    steps = [event for event in events if event.device_type == DeviceType.CPU and event.name in seconds]
    kernels = [event for event in events if event.device_type != DeviceType.CPU and not event.is_user_annotation]
    if device != "cpu" and not kernels:
        raise OSError(
            f"PyTorch's profiler sees no kernel of the {device} device: another profiler may have it, or CUPTI is not "
            "there; try without --profile"
        )
    found = []
    for name, unprofiled in seconds.items():
        mine = [step for step in steps if step.name == name]
        on_cpu = [cpu_time_by_kind(step) for step in mine]
        times = on_cpu
        if device != "cpu":
            times = [device_time_by_kind(step, _within(step, kernels)) for step in mine]
            for spent in times:
                spent[REST] = max(0.0, 1e6 * median(unprofiled) - sum(spent.values()))
        medians = {kind: median(spent[kind] for spent in times) for kind in KINDS}
        found.append(
            {
                "step": name,
                "seconds": _seconds(1e6 * each for each in unprofiled),
                "median": round(median(unprofiled), 9),
                "profiled_seconds": _seconds(step.time_range.elapsed_us() for step in mine),
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


def _within(step: Any, kernels: Iterable[Any]) -> list[Any]:
    """Those that ran in a step: the next one begins when the device is done with it."""
    span = step.time_range
    return [kernel for kernel in kernels if span.start <= kernel.time_range.start <= span.end]


def _seconds(microseconds: Iterable[float]) -> list[float]:
    return [round(each / 1e6, 9) for each in microseconds]


class _Stopwatch:
    """Notes what each step takes; on a CUDA device by events, so that nothing waits for it in between."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._noted: list[tuple[str, Any, Any]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = self._now()
        yield
        self._noted.append((name, begin, self._now()))

    def seconds(self) -> dict[str, list[float]]:
        """By name."""
        wait_for_device(self._device)
        found: dict[str, list[float]] = {}
        for name, begin, end in self._noted:
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
def _named(name: str, device: torch.device) -> Iterator[None]:
    """Names a step in a profile, and ends it when the device is done."""
    with record_function(name):
        yield
        wait_for_device(device)


def _name_hooks(unet: nn.Module) -> None:
    """Names in a profile what DeepCache's hooks do before and after a call of the U-Net."""
    ranges: list[record_function] = []

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def begin(*_: object) -> None:
        ranges.append(record_function(HOOKS))
        ranges[-1].__enter__()  # type: ignore[no-untyped-call]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def end(*_: object) -> None:
        ranges.pop().__exit__(None, None, None)

    unet.register_forward_pre_hook(begin, prepend=True)
    unet.register_forward_pre_hook(end)
    unet.register_forward_hook(begin, prepend=True)
    unet.register_forward_hook(end)


def _kernels_that_tell(device: torch.device) -> AbstractContextManager[None]:
    """What is compiled in it for a CPU tells the profiler about its kernels; else they are lost in the graph."""
    if device.type != "cpu":
        return nullcontext()
    from torch._inductor import config

    patched: AbstractContextManager[None] = config.patch({"cpp.enable_kernel_profile": True})
    return patched
