"""What a sequence acts on: U-Nets with DeepCache, their twins without, and the judge of every call."""

from __future__ import annotations

import contextlib
import copy
import traceback
from collections import Counter
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.fuzz.checks import kept_tensors, leftovers, patched
from tests.fuzz.library import Applied, Library
from tests.fuzz.oracle import Memory, Record, Twin, output_of, same
from tests.fuzz.settings import Setting
from tests.fuzz.unets import KINDS, UNetKind, template
from tests.fuzz.unknowable import UNKNOWABLE, Seen, Sight

__all__ = ["Fault", "Finding", "Injected", "Pipe", "Request", "Scheduler", "Setup", "Unit", "World", "Wrapper", "ordered"]

MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "grad": torch.enable_grad,
}
# What may be kept: for each call of the largest step, up to so many calls, a tensor for each order of each branch and a
# few of the program's own.
_CALLS_KEPT, _BESIDE = 24, 4


class Finding(Exception):
    """Something that must not happen.

    Args:
        kind: in a few words; equal for what is likely to have the same cause.
        text: what happened.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind, self.text = kind, text


class Injected(RuntimeError):
    """An error of the program's own."""


class InjectedInterrupt(KeyboardInterrupt):
    """Ctrl-C."""


@dataclass(frozen=True)
class Setup:
    """What a sequence begins with.

    Args:
        kind: the kind of U-Net.
        way: how DeepCache is applied: `"pipe"`, `"bare"` or `"helper"`.
        setting: the settings.
        frozen: whether the parameters require no gradient.
        conditioning: `"text"`, `"added"` (two tensors) or `"none"`.
        scheduler: whether the pipeline has a scheduler.
    """

    kind: str
    way: str
    setting: Setting
    frozen: bool
    conditioning: str
    scheduler: bool


class Scheduler:
    """A list of timesteps. `serial` tells one list from the next."""

    _serial = 0

    def __init__(self) -> None:
        self.timesteps: Tensor | None = None
        self.step_index: int | None = None
        self.serial = 0

    def set_timesteps(self, values: tuple[float, ...]) -> None:
        """Makes a new list."""
        Scheduler._serial += 1
        self.timesteps, self.step_index, self.serial = torch.tensor(values), None, Scheduler._serial


class Pipe:
    """As little as DeepCache needs of a pipeline."""

    def __init__(self, unet: nn.Module, scheduler: Scheduler | None) -> None:
        self.unet, self.scheduler = unet, scheduler


class Wrapper(nn.Module):
    """A module around a U-Net that hands on its attributes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


@dataclass(frozen=True)
class Fault:
    """An error that a program raises during one call.

    Args:
        module: the number of the module that it is raised in, among all modules of the U-Net.
        before: whether it is raised before that module runs.
        interrupt: whether it is Ctrl-C.
        first: whether the hook goes before those that are there.
    """

    module: int
    before: bool
    interrupt: bool
    first: bool

    def arm(self, unet: nn.Module) -> Any:
        """Puts the hook on, and returns its handle."""
        modules = list(unet.modules())
        module = modules[self.module % len(modules)]
        register = module.register_forward_pre_hook if self.before else module.register_forward_hook
        return register(self._raise, prepend=self.first)

    def _raise(self, *_: Any) -> None:
        raise InjectedInterrupt if self.interrupt else Injected("of the program's own")


@dataclass
class Unit:
    """A U-Net with DeepCache, or a copy of one.

    Args:
        module: the U-Net.
        twin: its twin.
        pipes: the pipelines that share it.
        setting: the settings in force.
        applied: how DeepCache is on it; None on a copy, which brought its own.
        sure: whether it is known that DeepCache is on it, or is not.
        on: whether it is.
        called: what the program calls: the U-Net, or what it put around it.
        wrappers: whatever it put around it so far.
        older: what was applied before, and had its place taken.
        sight: what the program has shown of its calls.
        largest: the most calls at one place of a list.
    """

    module: nn.Module
    twin: Twin
    pipes: list[Pipe]
    setting: Setting
    called: nn.Module
    applied: Applied | None = None
    sure: bool = True
    on: bool = True
    wrappers: list[Wrapper] = field(default_factory=list)
    older: list[Applied] = field(default_factory=list)
    sight: Sight = field(default_factory=Sight)
    largest: int = 1
    branches: set[int] = field(default_factory=set)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    def both(self) -> tuple[nn.Module, nn.Module]:
        """The U-Net and its twin, for what a program does to its U-Net."""
        return self.module, self.twin.module


@dataclass
class Request:
    """One call.

    Args:
        purpose: what it is for.
        seen: what the program shows of it.
        index: its place in the list of its loop.
        ordinal: how many steps its loop has made before.
        sample: its sample.
        timestep: its timestep.
        text: its conditioning.
        added: its further conditioning.
        skip: whether it leaves out layers.
        keywords: whether everything is given by name.
        mode: one of `MODES`.
        expect: what a strict run says of it: None for anything that is right, else `"full"` or the branch.
    """

    purpose: tuple[Hashable, ...]
    seen: Seen
    index: int
    ordinal: int
    sample: Tensor
    timestep: Any
    text: Tensor | None
    added: Tensor | None = None
    skip: bool = False
    keywords: bool = False
    mode: str = "no_grad"
    expect: str | int | None = None


class World:
    """The state of one sequence.

    Args:
        setup: what it begins with.
        library: the cache.
    """

    def __init__(self, setup: Setup, library: Library) -> None:
        self.setup, self.library = setup, library
        self.kind: UNetKind = KINDS[setup.kind]
        self.memory = Memory()
        self.loops: dict[int, Any] = {}
        self.counts: Counter[str] = Counter()
        self.log: list[str] = []
        self.serial = 0
        self._prompts: dict[Hashable, Tensor] = {}
        self._buffers: dict[Hashable, Tensor] = {}
        self._threads: dict[int, ThreadPoolExecutor] = {}
        module = copy.deepcopy(template(setup.kind, 0)).requires_grad_(not setup.frozen)
        schedulers = [Scheduler() if setup.scheduler else None for _ in range(2)]
        twin = Twin(copy.deepcopy(module), self.kind)
        unit = Unit(module, twin, [Pipe(module, each) for each in schedulers], setup.setting, module)
        self.units = [unit]
        self.apply(unit, setup.way, 0, setup.setting)

    # What is applied.

    def apply(self, unit: Unit, way: str, pipe: int, setting: Setting, refusable: bool = False) -> None:
        """Applies DeepCache. Where something is around the U-Net it may be refused with a `TypeError`."""
        target = unit.pipes[pipe] if way != "bare" else unit.called
        if unit.applied is not None:
            unit.older.append(unit.applied)
        try:
            unit.applied = self.guarded(lambda: Applied(self.library, way, target, setting.config()), refusable)
        except TypeError:
            self.counts["refused"] += 1
            unit.sure = False
            return
        unit.setting, unit.sure, unit.on = setting, True, True
        unit.branches.update(setting.branches)
        unit.sight.clear()

    def guarded(self, do: Callable[[], Any], refusable: bool = False) -> Any:
        """Does something that must not raise, but for a `TypeError` where that is the answer to it."""
        try:
            return do()
        except (Exception, KeyboardInterrupt) as error:
            if refusable and isinstance(error, TypeError):
                raise
            raise _raised(error) from error

    def end_run(self, unit: Unit) -> None:
        """Ends the run as the documentation says."""
        if unit.applied is None:
            self.remove(unit)
        elif unit.on:
            self.guarded(unit.applied.end_run)
            kept = kept_tensors([unit.applied.root], self._beside(unit))
            if kept:
                raise Finding("tensors kept after end_run", f"{len(kept)}, such as one of shape {tuple(kept[0].shape)}")
        unit.sight.clear()

    def remove(self, unit: Unit) -> None:
        """Removes DeepCache and looks at what is left."""
        targets = [unit.called, unit.module] if unit.applied is None or unit.applied.way == "bare" else unit.pipes
        if unit.wrappers and unit.applied is not None:
            # What is around the U-Net may hide it from whoever looks for the engine.
            self.guarded(unit.applied.detach)
        for target in targets:
            self.guarded(lambda target=target: self.library.remove(target))
        self.check_clean(unit)
        unit.on, unit.sure = False, True
        unit.sight.clear()

    def check_clean(self, unit: Unit) -> None:
        """Looks at a U-Net that DeepCache is not on."""
        left = leftovers(unit.module, unit.twin.module)
        for wrapper in unit.wrappers:
            more = set(vars(wrapper)) ^ set(vars(Wrapper(unit.module)))
            left = left or (f"what is around the U-Net has attributes {sorted(more)}" if more else "")
        for pipe in unit.pipes:
            if type(pipe) is not Pipe or set(vars(pipe)) != {"unet", "scheduler"}:
                left = left or f"the pipeline has the attributes {sorted(vars(pipe))} and class {type(pipe).__mro__}"
        if left:
            raise Finding("left behind", left)
        roots = [each.root for each in (unit.applied, *unit.older) if each is not None]
        kept = kept_tensors(roots, self._beside(unit))
        if kept:
            raise Finding("tensors kept after detach", f"{len(kept)}, such as one of shape {tuple(kept[0].shape)}")

    def check(self) -> None:
        """What must hold between calls."""
        for unit in self.units:
            left = patched(unit.module, unit.twin.module)
            if left:
                raise Finding("left patched", left)
            if unit.applied is not None and unit.on:
                kept = kept_tensors([unit.applied.root], self._beside(unit))
                orders = 3 * len(unit.branches) + _BESIDE
                limit = (min(unit.largest, _CALLS_KEPT) + 2) * orders
                if len(kept) > limit:
                    raise Finding("memory grows", f"{len(kept)} tensors are kept, at most {limit} are needed")

    def _beside(self, unit: Unit) -> list[Any]:
        modules = [module for each in self.units for module in each.module.modules()]
        schedulers = [pipe.scheduler for pipe in unit.pipes]
        return [*modules, *unit.wrappers, *unit.pipes, *schedulers, self.library]

    # What a call is made of.

    def new_run(self) -> int:
        """The number of a new run."""
        self.serial += 1
        return self.serial

    def place_of(self, unit: Unit, value: float, own: tuple[Hashable, int] | None = None) -> tuple[Hashable, float, bool]:
        """The list that DeepCache can see the value of a timestep in, its place there, and whether that list is
        ordered.

        Args:
            unit: the U-Net.
            value: the value.
            own: the list that it was taken from, and where.
        """
        scheduler = unit.applied.scheduler if unit.applied is not None else unit.pipes[0].scheduler
        if scheduler is None or scheduler.timesteps is None:
            return None, value, True
        listed, listing = scheduler.timesteps.tolist(), ("list", scheduler.serial)
        if value not in listed:
            return ("unlisted", self.new_run()), value, True
        return listing, own[1] if own is not None and own[0] == listing else listed.index(value), ordered(listed)

    def text(self, content: int, encoding: int, batch: int, dtype: torch.dtype, inference: bool = False) -> Tensor:
        """The embeddings of a prompt, one object for each time that it is encoded."""
        key = (content, encoding, batch, dtype, inference)
        if key not in self._prompts:
            generator = torch.Generator().manual_seed(content)
            with torch.inference_mode(inference):
                one = torch.randn(1, 3, 4, generator=generator).to(dtype)
                self._prompts[key] = one.repeat(batch, 1, 1)
        return self._prompts[key]

    def kept(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """A tensor that the program makes once and keeps."""
        if key not in self._prompts:
            self._prompts[key] = make()
        return self._prompts[key]

    def buffer(self, name: str, value: Tensor) -> Tensor:
        """A buffer that is made once and written over."""
        key = (name, value.shape, value.dtype)
        if key not in self._buffers:
            self._buffers[key] = torch.zeros_like(value)
        return self._buffers[key].copy_(value)

    # Calls.

    def call(self, unit: Unit, request: Request, fault: Fault | None = None) -> Tensor | None:
        """Makes a call and judges it; None where it ended with an error of the program's own."""
        self.look(unit, request)
        args, kwargs, before = self.prepare(request)
        try:
            output = self.in_thread(
                request.seen.thread, lambda: self.invoke(unit.called, request, args, kwargs, unit.module, fault)
            )
        except (Injected, InjectedInterrupt) as error:
            if fault is None:
                raise Finding("an error came back later", _trace(error)) from error
            self.counts["interrupted"] += 1
            left = patched(unit.module, unit.twin.module)
            if left:
                raise Finding("left patched after an error", left) from None
            return None
        except (Exception, KeyboardInterrupt) as error:
            raise _raised(error, f" in {request.purpose}") from error
        if not torch.equal(before, request.sample):
            raise Finding("changed the sample", f"of {request.purpose}")
        self.judge(unit, request, args, kwargs, output)
        return output

    def look(self, unit: Unit, request: Request) -> None:
        """Ends the run first where nothing could tell this call from the next step of another image."""
        if request.expect is None:
            for name, (applies, _) in UNKNOWABLE.items():
                if applies(unit.sight, request.seen):
                    self.counts[f"unknowable: {name}"] += 1
                    self.end_run(unit)
                    break
        unit.sight.add(request.seen)
        unit.largest = max(unit.largest, len(unit.sight.latest))

    def prepare(self, request: Request) -> tuple[tuple[Any, ...], dict[str, Any], Tensor]:
        """The arguments of a call, and a copy of its sample."""
        args, kwargs = self.kind.arguments(
            request.sample, request.timestep, request.text, request.added, request.skip, request.keywords
        )
        return args, kwargs, request.sample.clone()

    def invoke(
        self,
        called: nn.Module,
        request: Request,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        unet: nn.Module | None = None,
        fault: Fault | None = None,
    ) -> Tensor:
        """Calls the U-Net."""
        handle = fault.arm(unet) if fault is not None and unet is not None else None
        try:
            with MODES[request.mode]():
                return output_of(called(*args, **kwargs))
        finally:
            if handle is not None:
                handle.remove()

    def in_thread(self, thread: int, do: Callable[[], Any]) -> Any:
        """Does something in a thread of a number; 0 is this one."""
        if not thread:
            return do()
        if thread not in self._threads:
            self._threads[thread] = ThreadPoolExecutor(1)
        return self._threads[thread].submit(do).result()

    def judge(
        self, unit: Unit, request: Request, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        """Whether an output is that of the whole U-Net, or of a shallow step that is right for its purpose."""
        self.counts["calls"] += 1
        with torch.no_grad():
            whole, features = unit.twin.whole(args, kwargs)
            output = output.detach()
        number = self.counts["calls"]
        shape = (*request.sample.shape, request.sample.dtype)
        record = Record(number, request.index, request.ordinal, shape, features)
        if same(output, whole):
            self.note(number, request, "full")
            if isinstance(request.expect, int):
                raise Finding("full though an ordinary run has a shallow step there", f"step {request.ordinal}")
        else:
            if unit.sure and not unit.on:
                raise Finding("not the whole U-Net while detached", f"{request.purpose}")
            renewed = self._judge_shallow(unit, request, args, kwargs, output)
            self.counts["shallow"] += 1
            record = Record(number, request.index, request.ordinal, shape, renewed)
        self.memory.add(request.purpose, record)

    def _judge_shallow(
        self, unit: Unit, request: Request, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> dict[int, Tensor]:
        if request.expect == "full":
            explained = self._explain(unit, request, args, kwargs, output)
            raise Finding("shallow where it must be full", f"step {request.ordinal}: {explained}")
        line = unit.setting.forecast == "linear" or not unit.sure
        branches = tuple(unit.branches) if request.expect is None else (int(request.expect),)
        shape = (*request.sample.shape, request.sample.dtype)
        found = self.memory.candidates(request.purpose, request.index, request.ordinal, shape, branches, line)
        for branch, feature, name in found:
            expected, renewed = unit.twin.shallow(args, kwargs, branch, feature)
            if same(output, expected, 1e-5 if name.startswith("the line") else 1e-6):
                self.note(self.counts["calls"], request, f"shallow at branch {branch} on {name}")
                return renewed
            if request.expect is not None:
                break
        kind, text = self._explain(unit, request, args, kwargs, output)
        raise Finding(f"wrong image: {kind}", f"{request.purpose} at step {request.ordinal}: {text}")

    def _explain(
        self, unit: Unit, request: Request, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> tuple[str, str]:
        """Whose deep feature an output was made with."""
        for purpose, records in self.memory.records.items():
            for record in reversed(records):
                for branch, feature in record.features.items():
                    with contextlib.suppress(RuntimeError):
                        if same(output, unit.twin.shallow(args, kwargs, branch, feature)[0], 1e-5):
                            return _whose(purpose, request.purpose), f"the deep feature of call {record.call}, {purpose}"
        return "of unknown origin", "no whole U-Net and no deep feature gives this output"

    def note(self, number: int, request: Request, what: str) -> None:
        """Writes a line of the log that a replay prints."""
        seen = request.seen
        self.log.append(f"    call {number}: {request.purpose} at {seen.place:g}, thread {seen.thread}: {what}")

    def close(self) -> None:
        """Ends the threads."""
        for executor in self._threads.values():
            executor.shutdown()


def ordered(values: list[float]) -> bool:
    """Whether values only fall or only rise."""
    pairs = list(zip(values, values[1:], strict=False))
    return all(first >= second for first, second in pairs) or all(first <= second for first, second in pairs)


def _whose(found: tuple[Hashable, ...], wanted: tuple[Hashable, ...]) -> str:
    if found == wanted:
        return "a stale deep feature of its own, or at another branch"
    if found[0] != wanted[0]:
        return "the deep feature of another run"
    return "the deep feature of another conditioning or view"


def _raised(error: BaseException, where: str = "") -> Finding:
    return Finding(f"{type(error).__name__} raised: {str(error)[:50]}", _trace(error) + where)


def _trace(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in frames[:-5:-1])
    return f"{type(error).__name__}: {str(error)[:200]} ({where})"
