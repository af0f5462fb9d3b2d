"""A cache that is as careful as can be, to test the fuzzer with, and the same with faults.

Without a fault it shows that what the fuzzer asks for can be had: it tells calls by what a program shows on the host,
and every step that leaves a doubt is full. Each fault is one that a cache has had; the fuzzer has to find it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from DeepCache import DeepCacheConfig
from tests.fuzz.oracle import output_of
from tests.fuzz.unets import KINDS, BlockUNet, LatentUNet

__all__ = ["FAULTS", "Toy"]

FAULTS = (
    "slots by order only",
    "first step not full",
    "feature of another run",
    "the same conditioning twice",
    "contents of a buffer not looked at",
    "every jump is the next step",
    "gradients not looked at",
    "everything full",
    "forgets nothing",
    "left on after detach",
    "error leaves the patch",
)
"""What can be wrong with it."""

_LOCK = threading.Lock()


@dataclass
class _Entry:
    """What is kept for one conditioning: where its last call was, how many there were, and its latest features."""

    place: float
    count: int = 1
    features: dict[int, list[tuple[int, Tensor]]] = field(default_factory=dict)


@dataclass
class _Run:
    listing: Any = None
    place: float | None = None
    before: float | None = None
    rising: bool | None = None
    step: int = 0
    order: int = 0
    entries: dict[Any, _Entry] = field(default_factory=dict)
    held: list[Any] = field(default_factory=list)
    pattern: list[str] = field(default_factory=list)


class ToyEngine:
    """The cache on one U-Net; see `apply_deepcache` for what its methods are to do."""

    def __init__(self, target: Any, config: DeepCacheConfig, fault: str) -> None:
        unet = getattr(target, "unet", None) or target
        self.module: nn.Module = getattr(unet, "inner", unet)
        self.target, self.fault = target, fault
        names = {BlockUNet: "blocks", LatentUNet: "latent"}
        self.kind_name = names.get(type(self.module), "diffusers")
        self.attached = False
        self._run, self._last_pattern = _Run(), ""
        self._handles: list[Any] = []
        self._tapped: list[nn.Module] = []
        self._given: tuple[int, Tensor] | None = None
        self._taken: dict[int, Tensor] = {}
        self._owner: int | None = None
        self.configure(config)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_run": _Run(), "_owner": None, "_taken": {}, "target": self.module, "_handles": []}

    def __deepcopy__(self, memo: dict[int, Any]) -> ToyEngine:
        copied = ToyEngine.__new__(ToyEngine)
        memo[id(self)] = copied
        import copy

        copied.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return copied

    @property
    def pattern(self) -> str:
        return "".join(self._run.pattern)

    def configure(self, config: DeepCacheConfig) -> None:
        if not isinstance(config, DeepCacheConfig):
            raise TypeError(f"config must be a DeepCacheConfig, got {config!r}")
        count = len(KINDS[self.kind_name].producers)
        if config.cache_branch_id >= count:
            raise ValueError(f"cache_branch_id must be below {count}, got {config.cache_branch_id}")
        self.config = config
        self.end_run()

    def attach(self) -> None:
        other = self.module.__dict__.get("forward")
        if other is not None and other.__self__ is not self:
            other.__self__.detach()
        self.module.__dict__["forward"] = self._forward
        self.attached = True

    def detach(self) -> None:
        self.end_run()
        if self.attached and self.fault != "left on after detach":
            del self.module.__dict__["forward"]
        self.attached = False
        self._untap()

    def end_run(self) -> None:
        if self.fault != "forgets nothing":
            self._run = _Run(pattern=self._run.pattern if hasattr(self, "_run") else [])
        self._taken = {}

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        thread = threading.get_ident()
        with _LOCK:
            if self._owner not in (None, thread):
                raise RuntimeError("two threads call this U-Net at once")
            self._owner = thread
        try:
            return self._call(args, kwargs)
        except BaseException:
            self.end_run()
            if self.fault == "error leaves the patch":
                return self.module.__dict__.setdefault("conv_out_patch", None) or self._reraise()
            raise
        finally:
            self._given, self._taken, self._owner = None, {}, None

    def _reraise(self) -> None:
        raise

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        forward: Callable[..., Any] = partial(type(self.module).forward, self.module)
        if self._is_no_step(args, kwargs):
            return forward(*args, **kwargs)
        self._tap()
        place = self._locate(args, kwargs)
        if place is None:
            self.end_run()
            return forward(*args, **kwargs)
        key = self._key(args, kwargs)
        entry, run = self._run.entries.get(key), self._run
        branch = self._shallow_branch(entry)
        if branch is not None and entry is not None:
            self._given = (branch, self._forecast(entry, branch))
        sign = "F" if branch is None else "."
        if run.order == 1:
            run.pattern.append(sign)
        elif sign == "F":
            run.pattern[-1] = "F"
        self._taken = {}
        output = forward(*args, **kwargs)
        self._keep(key, entry, branch, output)
        return output

    def _is_no_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if self.fault == "gradients not looked at":
            return False
        wanted = any(each.requires_grad for each in (*_tensors(args, kwargs), *self.module.parameters()))
        return self.module.training or (torch.is_grad_enabled() and wanted)

    def _locate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
        """Goes on to the place of a call, in this run or in a new one; None where it is no step of any."""
        names = KINDS[self.kind_name].names
        timestep = kwargs[names[1]] if names[1] in kwargs else args[1]
        found = self._place(timestep)
        if found is None:
            return None
        listing, place, ordered = found
        run = self._run
        if not ordered and self.fault != "feature of another run":
            return None
        if self._starts(listing, place):
            kept = run.entries if self.fault in ("feature of another run", "forgets nothing") else {}
            first = run.step if self.fault == "first step not full" else 0
            entries = run.entries if self.fault == "first step not full" else kept
            self._run = run = _Run(listing, place, step=first, entries=entries)
            if self.fault == "first step not full":
                run.before = next((each.place for each in entries.values()), None)
        elif place != run.place:
            run.before, run.rising = run.place, place > run.place  # type: ignore[operator]
            run.place, run.order, run.step = place, 0, run.step + 1
        run.order += 1
        return place

    def _starts(self, listing: Any, place: float) -> bool:
        run = self._run
        if run.place is None or not _same_list(listing, run.listing):
            return True
        if listing is None:
            turned = run.rising is not None and place != run.place and run.rising != (place > run.place)
            return turned
        if self.fault == "every jump is the next step":
            return place < run.place
        return place not in (run.place, run.place + 1)

    def _place(self, timestep: Any) -> tuple[Any, float, bool] | None:
        if isinstance(timestep, Tensor) and (timestep.numel() == 1 or not any(timestep.stride())):
            storage = timestep.untyped_storage()
            count = storage.nbytes() // timestep.element_size()
            if count > 1:
                values = torch.empty(0, dtype=timestep.dtype).set_(storage).tolist()
                return storage, timestep.storage_offset(), _is_ordered(values)
        values = set(timestep.flatten().tolist()) if isinstance(timestep, Tensor) else {float(timestep)}
        if len(values) > 1:
            return None
        value, scheduler = values.pop(), getattr(self.target, "scheduler", None)
        if scheduler is None or scheduler.timesteps is None:
            return None, value, True
        listed = scheduler.timesteps.tolist()
        if listed.count(value) != 1:
            return None
        return scheduler.timesteps, listed.index(value), _is_ordered(listed)

    def _key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        names = KINDS[self.kind_name].names
        sample = kwargs[names[0]] if names[0] in kwargs else args[0]
        shape = (tuple(sample.shape), sample.dtype)
        if self.fault == "slots by order only":
            return shape, self._run.order
        given = {name: value for name, value in kwargs.items() if name not in names[:2]}
        tensors = list(_tensors((), given))
        self._run.held.extend(tensors)
        plain = tuple((name, value) for name, value in given.items() if isinstance(value, (bool, int, float)))
        return shape, threading.get_ident(), tuple(map(self._identity, tensors)), plain

    def _identity(self, tensor: Tensor) -> Any:
        looked_at = not tensor.is_inference() and self.fault != "contents of a buffer not looked at"
        version = tensor._version if looked_at else 0
        return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), version

    def _shallow_branch(self, entry: _Entry | None) -> int | None:
        run = self._run
        if entry is None or self.fault == "everything full":
            return None
        careless = self.fault in ("feature of another run", "every jump is the next step")
        if entry.place != run.before and not careless:
            return None
        if entry.count > 1 and self.fault != "the same conditioning twice":
            return None
        step = self.config.step(run.step, None)
        return None if step.full or step.branch not in entry.features else step.branch

    def _forecast(self, entry: _Entry, branch: int) -> Tensor:
        (number, latest), *earlier = entry.features[branch]
        if self.config.forecast == "none" or not earlier:
            return latest
        before, value = earlier[0]
        return latest + (latest - value) * ((self._run.step - number) / (number - before))

    def _keep(self, key: Any, entry: _Entry | None, branch: int | None, output: Any) -> None:
        run = self._run
        assert run.place is not None
        again = entry is not None and entry.place == run.place
        doubtful = branch is None and entry is not None and entry.place != run.before
        if entry is None or again or doubtful:
            entry = _Entry(run.place, 1 + (entry.count if entry is not None and again else 0))
        entry.place = run.place
        for number, tensor in self._taken.items():
            if number in self.config.branches and (branch is None or number < branch):
                entry.features[number] = [(run.step, tensor), *entry.features.get(number, [])][:2]
        run.entries[key] = entry
        if self.fault not in ("forgets nothing", "feature of another run"):
            run.entries = {
                each: kept for each, kept in run.entries.items() if kept.place in (run.place, run.before)
            }
            # All that one call after another leaves at one place is of no use.
            while len(run.entries) > 16:
                del run.entries[next(iter(run.entries))]
        del run.held[:-16]

    def _tap(self) -> None:
        tapped = [self.module.get_submodule(path) for path in KINDS[self.kind_name].producers]
        if tapped != self._tapped or not self._handles:
            self._untap()
            self.end_run()
            self._tapped = tapped
            self._handles = [
                module.register_forward_hook(partial(self._hook, branch)) for branch, module in enumerate(tapped)
            ]

    def _untap(self) -> None:
        for module in self._tapped:
            for number, hook in list(module._forward_hooks.items()):
                if isinstance(hook, partial) and getattr(hook.func, "__self__", None) is self:
                    del module._forward_hooks[number]
        self._handles, self._tapped = [], []

    def _hook(self, branch: int, module: nn.Module, args: Any, output: Any) -> Any:
        if self._given is not None and self._given[0] == branch:
            stored = self._given[1]
            return stored if isinstance(output, Tensor) else (stored, *output[1:])
        self._taken[branch] = output_of(output).detach().clone()
        return None


class Toy:
    """The toy as a library.

    Args:
        fault: one of `FAULTS`, or an empty string.
    """

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def apply(self, target: Any, config: DeepCacheConfig) -> ToyEngine:
        engine = ToyEngine(target, config, self.fault)
        engine.attach()
        return engine

    def remove(self, target: Any) -> None:
        unet = getattr(target, "unet", None) or target
        forward = getattr(unet, "inner", unet).__dict__.get("forward")
        if forward is not None:
            forward.__self__.detach()

    def helper(self, target: Any) -> _ToyHelper:
        return _ToyHelper(target, self.fault)


class _ToyHelper:
    def __init__(self, target: Any, fault: str) -> None:
        self.target, self.fault = target, fault
        self.engine: ToyEngine | None = None
        self.config = DeepCacheConfig()

    def set_params(self, **settings: Any) -> None:
        config = DeepCacheConfig(**settings)
        engine = self.engine or ToyEngine(self.target, config, self.fault)
        engine.configure(config)
        self.config = config

    def enable(self) -> None:
        self.engine = self.engine or ToyEngine(self.target, self.config, self.fault)
        self.engine.attach()

    def disable(self) -> None:
        if self.engine is not None:
            self.engine.detach()


def _same_list(first: Any, second: Any) -> bool:
    if isinstance(first, torch.UntypedStorage) and isinstance(second, torch.UntypedStorage):
        return first.data_ptr() == second.data_ptr()
    return first is second


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    values = [*args, *kwargs.values()]
    values = [*values, *(inner for each in values if isinstance(each, dict) for inner in each.values())]
    return [each for each in values if isinstance(each, Tensor)]


def _is_ordered(values: list[float]) -> bool:
    pairs = list(zip(values, values[1:], strict=False))
    return all(first >= second for first, second in pairs) or all(first <= second for first, second in pairs)
