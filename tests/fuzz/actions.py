"""What a sequence is made of. An action is drawn once, with all that it does, and can be left out of a replay."""

from __future__ import annotations

import copy
import io
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from tests.fuzz import concurrent, gradients
from tests.fuzz.library import Applied
from tests.fuzz.loops import BY_VALUE, VIEWS, Loop, Spec, draw_roles, draw_values
from tests.fuzz.settings import Setting, draw_setting
from tests.fuzz.unknowable import Seen
from tests.fuzz.world import Fault, Finding, Request, Scheduler, Setup, Unit, World, Wrapper

__all__ = ["ACTIONS", "Action", "Draft", "draw_action"]


@dataclass(frozen=True)
class Action:
    """One thing that a program does.

    Args:
        kind: a key of `ACTIONS`.
        params: what it takes besides the world.
    """

    kind: str
    params: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(f'{name}={value!r}' for name, value in self.params.items())})"


@dataclass
class Draft:
    """What is known of a sequence while it is drawn.

    Args:
        rng: the source of all that is drawn.
        setup: what the sequence begins with.
        branches: how many skip branches its U-Net has.
        specs: the loops so far.
        copies: how many copies of the U-Net there are.
    """

    rng: random.Random
    setup: Setup
    branches: int
    specs: list[Spec] = field(default_factory=list)
    copies: int = 1

    def loop(self) -> int:
        """The number of a loop, most often of the latest."""
        count = len(self.specs)
        return count - 1 if count < 2 or self.rng.random() < 0.7 else self.rng.randrange(count)

    def chance(self, share: float) -> bool:
        return self.rng.random() < share


def _draw_spec(draft: Draft, strict: bool = False) -> Spec:
    rng, last = draft.rng, draft.specs[-1] if draft.specs else None
    values = draw_values(rng, rng.randint(5, 9))
    spec = Spec(
        image=rng.randrange(100),
        values=values,
        how=rng.choice(VIEWS if rng.random() < 0.6 else BY_VALUE),
        where=rng.choice(("scheduler",) * 5 + ("same", "same", "own", "none")),
        roles=draw_roles(rng),
        prompt=rng.choice((1, 2, 3)),
        encoding=rng.choice((0, 0, 1)),
        conds=rng.choice(("persistent",) * 6 + ("inference", "chunk", "clone", "cat", "static", "steps")),
        batch=rng.choice((1, 1, 1, 2)),
        size=rng.choice((2, 2, 2, 3)),
        start=rng.choice((0,) * 6 + (1, 2, 4)),
        mode=rng.choice(("no_grad",) * 5 + ("inference",) * 2 + ("grad",)),
        thread=rng.choice((0,) * 8 + (1, 2)),
        keywords=draft.chance(0.2),
        inplace=draft.chance(0.15),
        dirty=draft.chance(0.15),
        counts=draft.chance(0.3),
        unit=rng.randrange(draft.copies),
        pipe=int(draft.chance(0.15)),
    )
    if last is not None and draft.chance(0.5):
        # As programs do: the next image like the last one, but for its noise.
        spec = replace(
            last, image=spec.image, where=rng.choice(("scheduler", "same", last.where)), start=spec.start, strict=False
        )
    if spec.conds == "inference" and spec.mode == "grad":
        spec = replace(spec, conds="persistent")
    return _strict(draft, spec) if strict else spec


def _strict(draft: Draft, spec: Spec) -> Spec:
    """An ordinary run: a fresh list, the same calls at every step, a conditioning of its own for each."""
    rng = draft.rng
    values = tuple(float(each) for each in sorted(rng.sample(range(1, 999), rng.randint(5, 9)), reverse=True))
    if draft.chance(0.5):
        values = tuple(map(int, values))
    elif draft.chance(0.2):
        values = tuple(reversed(values))
    how = spec.how
    if how in VIEWS and draft.chance(0.3):
        values = (values[0], *(each for each in values[1:5] for _ in range(2)))
    roles = rng.choice((("cond",), ("batch",), ("uncond", "cond"), ("cond", "uncond"), ("uncond", "cond", "third")))
    if draft.setup.conditioning == "none":
        roles = ("cond",)
    return replace(
        spec,
        values=values,
        where="scheduler",
        roles=roles,
        start=rng.choice((0, 0, 0, 2)),
        mode=rng.choice(("no_grad", "no_grad", "inference")),
        conds=rng.choice(("persistent", "persistent", "chunk", "inference")),
        unit=0,
        strict=True,
    )


def _no_params(draft: Draft) -> dict[str, Any]:
    return {}


# Loops.


def _draw_begin(draft: Draft) -> dict[str, Any]:
    spec = _draw_spec(draft)
    draft.specs.append(spec)
    return {"loop": len(draft.specs) - 1, "spec": spec, "steps": draft.rng.choice((1, 2, 3, 4, 5, 9))}


def _begin(world: World, loop: int, spec: Spec, steps: int) -> None:
    world.loops[loop] = Loop(world, loop, spec)
    _advance(world, loop, steps)


def _draw_advance(draft: Draft) -> dict[str, Any]:
    return {"loop": draft.loop(), "steps": draft.rng.randint(1, 4)}


def _advance(world: World, loop: int, steps: int, mode: str | None = None) -> None:
    found = world.loops.get(loop)
    for _ in range(steps):
        if found is None or found.done:
            return
        found.step(mode)


def _draw_other_mode(draft: Draft) -> dict[str, Any]:
    return {"loop": draft.loop(), "steps": draft.rng.randint(1, 3), "mode": draft.rng.choice(("inference", "no_grad"))}


def _draw_turns(draft: Draft) -> dict[str, Any]:
    return {"loops": [draft.loop(), draft.rng.randrange(max(1, len(draft.specs)))], "turns": draft.rng.randint(1, 3)}


def _turns(world: World, loops: list[int], turns: int) -> None:
    for _ in range(turns):
        for loop in loops:
            _advance(world, loop, 1)


def _draw_seek(draft: Draft) -> dict[str, Any]:
    rng = draft.rng
    return {
        "loop": draft.loop(),
        "by": rng.choice(("start", "start", "same", "next", "jump", "back")),
        "image": rng.choice((None, rng.randrange(100), rng.randrange(100))),
        "prompt": rng.choice((None, None, 1, 2, 3)),
        "steps": rng.randint(1, 4),
    }


def _seek(world: World, loop: int, by: str, image: int | None, prompt: int | None, steps: int) -> None:
    found = world.loops.get(loop)
    if found is None:
        return
    last = found.index - 1
    places = {"start": 0, "same": last, "next": found.index, "jump": found.index + 2, "back": max(0, last - 2)}
    if prompt is not None:
        found.change(prompt=prompt)
    # The loop goes from the start with this image: another run of it.
    found.seek(max(0, places[by]), found.spec.image if image is None and by == "start" else image)
    _advance(world, loop, steps)


def _draw_change(draft: Draft) -> dict[str, Any]:
    what = draft.rng.choice(
        ("drop first", "drop last", "add uncond", "add skip", "add hidden", "reverse", "batch", "size", "one prompt")
        + ("swap prompts", "views", "conds", "how", "thread")
    )
    return {"loop": draft.loop(), "what": what, "value": draft.rng.randrange(6), "steps": draft.rng.randint(1, 4)}


def _change(world: World, loop: int, what: str, value: int, steps: int) -> None:
    found = world.loops.get(loop)
    if found is None or found.spec.strict:
        return
    spec = found.spec
    roles = spec.roles
    front = value % 2
    changes: dict[str, dict[str, Any]] = {
        "drop first": {"roles": roles[1:] or roles},
        "drop last": {"roles": roles[:-1] or roles},
        "add uncond": {"roles": ("uncond", *roles) if front else (*roles, "uncond")},
        "add skip": {"roles": (*roles, "skip")},
        "add hidden": {"roles": ("hidden", *roles) if front else (*roles, "hidden")},
        "reverse": {"roles": roles[::-1]},
        "batch": {"batch": 3 - spec.batch},
        "size": {"size": 5 - spec.size},
        "one prompt": {"prompt": 1 + (spec.prompt + front) % 3},
        "swap prompts": {"prompt": 1 + spec.prompt % 3, "encoding": 1 - spec.encoding},
        "views": {"roles": tuple(f"view{number}" for number in range(1 + value))},
        "conds": {"conds": ("persistent", "clone", "cat", "static", "chunk", "steps")[value]},
        "how": {"how": (VIEWS + BY_VALUE)[value + 2]},
        "thread": {"thread": value % 3},
    }
    found.change(**changes[what])
    _advance(world, loop, steps)


def _draw_ordinary(draft: Draft) -> dict[str, Any]:
    return {"spec": _draw_spec(draft, strict=True)}


def _ordinary(world: World, spec: Spec) -> None:
    """A run whose every step must be what the schedule says."""
    unit = world.units[0]
    applied = unit.applied
    if applied is None or not (unit.on and unit.sure) or unit.called is not unit.module:
        spec = replace(spec, strict=False)
    elif applied.scheduler is None:
        spec = replace(spec, how=spec.how if spec.how in VIEWS else "view", where="own", pipe=0)
    else:
        spec = replace(spec, pipe=unit.pipes.index(applied.target))
    loop = Loop(world, -1, spec)
    while not loop.done:
        loop.step()
    engine = applied.engine if applied is not None else None
    if spec.strict and engine is not None:
        expected = ["F" if unit.setting.step(number) is None else "." for number in range(loop.ordinal)]
        found = ["F" if sign == "F" else "." for sign in engine.pattern]
        if found != expected:
            raise Finding("another pattern than the schedule's", f"{''.join(found)} for {''.join(expected)}")


# Calls beside a loop.


def _single(
    world: World, unit: Unit, timestep: Any, place: float, prompt: int, encoding: int, image: int, **more: Any
) -> Request:
    """A call that is an image of its own. `stands` says which list its timestep stands in, and where."""
    run, dtype = world.new_run(), unit.dtype
    generator = torch.Generator().manual_seed(2000 + image)
    batch = more.get("batch", 1)
    sample = torch.randn(batch, *world.kind.shape(2), generator=generator).to(dtype)
    plain = world.setup.conditioning == "none"
    text = None if plain else world.text(prompt, encoding, batch, dtype)
    added = world.text(100 + prompt, encoding, batch, dtype) if world.setup.conditioning == "added" else None
    key = () if plain else ((prompt,), encoding, batch, dtype)
    key = (key, 100 + prompt, encoding) if added is not None else key
    purpose = (run, "alone", prompt)
    stands = more.get("stands") or world.place_of(unit, float(place))
    seen = Seen(*stands, (key, False), (*sample.shape, dtype), 0, purpose)
    return Request(purpose, seen, int(place), 0, sample, timestep, text, added, mode=more.get("mode", "no_grad"))


def _draw_warm_up(draft: Draft) -> dict[str, Any]:
    spec = _draw_spec(draft)
    draft.specs.append(spec)
    return {
        "loop": len(draft.specs) - 1,
        "spec": spec,
        "calls": draft.rng.randint(1, 2),
        "other": draft.chance(0.5),
        "steps": draft.rng.randint(2, 9),
    }


def _warm_up(world: World, loop: int, spec: Spec, calls: int, other: bool, steps: int) -> None:
    """Calls on the first timestep before the loop, with the noise and the prompt of the loop or with others."""
    found = world.loops[loop] = Loop(world, loop, spec)
    own = found.run
    for number in range(calls):
        found.run = world.new_run()
        if other:
            found.change(prompt=1 + (spec.prompt + number) % 3)
        for role in found.spec.roles:
            request = found.request(role, spec.mode)
            world.call(found.unit, request)
    found.run = own
    found.change(prompt=spec.prompt)
    _advance(world, loop, steps)


def _draw_random_timesteps(draft: Draft) -> dict[str, Any]:
    rng = draft.rng
    return {
        "values": rng.sample(range(1, 999), rng.randint(3, 6)),
        "as_list": draft.chance(0.5),
        "prompt": rng.choice((None, 1)),
        "seed": rng.randrange(1000),
    }


def _random_timesteps(world: World, values: list[int], as_list: bool, prompt: int | None, seed: int) -> None:
    """Other images at timesteps in no order, as a validation loss takes them. With `prompt` all have the same
    conditioning, which can be told from a run only where the list or the scheduler tells."""
    unit = world.units[0]
    if sorted(values) in (values, values[::-1]):
        values = [*values[1:], values[0], 500]
    timesteps = torch.tensor(values)
    listing = ("random", world.new_run())
    told = as_list or (unit.applied is not None and getattr(unit.applied.scheduler, "timesteps", None) is not None)
    for place in range(len(values)):
        timestep = timesteps[place] if as_list else timesteps[place].clone()
        same = prompt is not None and told
        request = _single(
            world,
            unit,
            timestep,
            values[place],
            prompt if same and prompt is not None else 1 + place,
            0 if same else seed + place,
            seed + place,
            stands=(listing, place, False) if as_list else None,
        )
        world.call(unit, request)


def _draw_one_timestep(draft: Draft) -> dict[str, Any]:
    calls = 120 if draft.setup.kind != "diffusers" and draft.chance(0.03) else draft.rng.randint(2, 6)
    return {"calls": calls, "tensor": draft.chance(0.5), "prompts": draft.rng.choice((1, 1, 3))}


def _one_timestep(world: World, calls: int, tensor: bool, prompts: int) -> None:
    """Another image at each call, and always the same timestep."""
    unit, kept = world.units[0], torch.tensor(437)
    for number in range(calls):
        request = _single(world, unit, kept if tensor else 437, 437, 1 + number % prompts, 0, number)
        world.call(unit, request)
    world.check()


def _draw_mixed(draft: Draft) -> dict[str, Any]:
    return {"values": [draft.rng.sample(range(1, 999), 2) for _ in range(draft.rng.randint(1, 3))]}


def _mixed(world: World, values: list[list[int]]) -> None:
    """Batches whose samples stand at several timesteps."""
    unit = world.units[0]
    for number, each in enumerate(values):
        request = _single(world, unit, torch.tensor(each), each[0], 1, 0, number, batch=2)
        world.call(unit, request)


def _draw_fault(draft: Draft) -> dict[str, Any]:
    rng = draft.rng
    fault = Fault(rng.randrange(200) * (not draft.chance(0.25)), draft.chance(0.5), draft.chance(0.4), draft.chance(0.5))
    return {"loop": draft.loop(), "fault": fault, "at": rng.randrange(3), "retry": draft.chance(0.6)}


def _fault(world: World, loop: int, fault: Fault, at: int, retry: bool) -> None:
    found = world.loops.get(loop)
    if found is None or found.done:
        return
    if not found.step(fault=fault, at=at) and not retry:
        found.index += 1


# What is done to DeepCache.


def _draw_configure(draft: Draft) -> dict[str, Any]:
    return {"setting": draw_setting(draft.rng, draft.branches)}


def _configure(world: World, setting: Setting) -> None:
    unit = world.units[0]
    if unit.applied is None or not unit.sure:
        return
    world.guarded(lambda: unit.applied and unit.applied.configure(setting.config()))
    unit.setting = setting
    unit.branches.update(setting.branches)
    unit.sight.clear()


def _draw_refused(draft: Draft) -> dict[str, Any]:
    return {"name": draft.rng.choice(("branch", "interval", "forecast", "config"))}


def _refused(world: World, name: str) -> None:
    """Settings that are wrong: the error names the value, and nothing changes."""
    from DeepCache import DeepCacheConfig

    unit = world.units[0]
    if unit.applied is None or not unit.sure:
        return
    applied = unit.applied
    wrong: dict[str, tuple[Callable[[], Any], str]] = {
        "branch": (lambda: applied.configure(DeepCacheConfig(2, 99)), "99"),
        "interval": (lambda: applied.configure(DeepCacheConfig(-7)), "-7"),
        "forecast": (lambda: applied.configure(DeepCacheConfig(forecast="liner")), "liner"),  # type: ignore[arg-type]
        "config": (lambda: world.library.apply(unit.pipes[0], {"cache_interval": 5}), "cache_interval"),  # type: ignore[arg-type]
    }
    do, value = wrong[name]
    try:
        do()
    except (ValueError, TypeError) as error:
        if value not in str(error):
            raise Finding("an error without the value", f"{error}, for {value}") from error
    else:
        raise Finding("wrong settings accepted", name)


def _detach(world: World) -> None:
    unit = world.units[0]
    if unit.applied is None or not unit.sure:
        return
    world.guarded(unit.applied.detach)
    unit.on = False
    unit.sight.clear()
    world.check_clean(unit)


def _attach(world: World) -> None:
    unit = world.units[0]
    if unit.applied is None or not unit.sure:
        return
    applied: Applied = unit.applied
    world.guarded(applied.attach, refusable=bool(unit.wrappers))
    if not unit.on:
        unit.sight.clear()
    unit.on = True


def _reattach(world: World) -> None:
    _detach(world)
    _attach(world)


def _draw_apply(draft: Draft) -> dict[str, Any]:
    return {
        "remove": draft.chance(0.5),
        "way": draft.rng.choice(("pipe", "bare", "helper")),
        "pipe": draft.rng.randrange(2),
        "setting": draw_setting(draft.rng, draft.branches),
    }


def _apply(world: World, remove: bool, way: str, pipe: int, setting: Setting) -> None:
    """Applies DeepCache once more, after it was removed or in the place of what is there."""
    unit = world.units[0]
    if remove:
        world.remove(unit)
    world.apply(unit, way, pipe, setting, refusable=bool(unit.wrappers))


def _old_engine(world: World) -> None:
    """An engine whose place was taken is detached: that must not touch the one that is on."""
    unit = world.units[0]
    for each in unit.older:
        if each.engine is not None:
            world.guarded(each.engine.end_run)
        world.guarded(each.detach)


def _end_run(world: World) -> None:
    world.end_run(world.units[0])


def _check(world: World) -> None:
    world.check()


# What is done to the U-Net.


def _draw_wrap(draft: Draft) -> dict[str, Any]:
    return {"how": draft.rng.choice(("in the pipeline", "in the pipeline", "around the call", "off"))}


def _wrap(world: World, how: str) -> None:
    """Puts a module around the U-Net, or takes it off."""
    unit = world.units[0]
    wrapped = unit.module if how == "off" else Wrapper(unit.module)
    if isinstance(wrapped, Wrapper):
        unit.wrappers.append(wrapped)
    unit.called = wrapped
    unit.sight.clear()
    if how == "around the call":
        return
    for pipe in unit.pipes:
        try:
            pipe.unet = wrapped
        except TypeError:
            world.counts["refused"] += 1
    unit.sure = False
    # The program sees whether DeepCache is on by applying it.
    if how == "off" and unit.applied is not None:
        world.remove(unit)
        world.apply(unit, "pipe", 0, unit.setting)


def _draw_replace(draft: Draft) -> dict[str, Any]:
    return {"block": draft.rng.randrange(10), "seed": draft.rng.choice((0, 1, 2))}


def _replace(world: World, block: int, seed: int) -> None:
    """Puts other blocks into the U-Net and its twin; with seed 0 they have the same weights."""
    unit = world.units[0]
    paths = world.kind.blocks
    path = paths[block % len(paths)]
    other = copy.deepcopy(_clean_block(unit, path)) if not seed else world.kind.seeded(seed).get_submodule(path)
    other.to(unit.dtype).requires_grad_(not world.setup.frozen)
    for module in unit.both():
        module.set_submodule(path, copy.deepcopy(other))
    unit.twin.watch()
    # What was computed with the old block is another model's.
    unit.sight.clear()


def _clean_block(unit: Unit, path: str) -> nn.Module:
    return unit.twin.unwatched().get_submodule(path)


def _draw_copy(draft: Draft) -> dict[str, Any]:
    draft.copies += 1
    return {"how": draft.rng.choice(("deepcopy", "pickle", "torch")), "loop": draft.loop(), "goes_on": draft.chance(0.5)}


def _copy(world: World, how: str, loop: int, goes_on: bool) -> None:
    """Copies the U-Net. A loop may go on with the copy."""
    unit = world.units[0]
    module: nn.Module = world.guarded(lambda: _copied(unit.module, how))
    twin = type(unit.twin)(unit.twin.unwatched(), world.kind)
    pipes = [type(unit.pipes[0]).__new__(_plain(type(pipe))) for pipe in unit.pipes]
    for pipe in pipes:
        pipe.unet, pipe.scheduler = module, Scheduler() if world.setup.scheduler else None
    copied = Unit(module, twin, pipes, unit.setting, module, sure=False, branches=set(unit.branches))
    copied.sight = copy.deepcopy(unit.sight)
    world.units.append(copied)
    if goes_on and loop in world.loops:
        world.loops[loop].unit = copied


def _plain(kind: type) -> type:
    from tests.fuzz.world import Pipe

    return Pipe


def _copied(module: nn.Module, how: str) -> nn.Module:
    if how == "deepcopy":
        return copy.deepcopy(module)
    if how == "pickle":
        return pickle.loads(pickle.dumps(module))
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    loaded: nn.Module = torch.load(stream, weights_only=False)
    return loaded


def _draw_dtype(draft: Draft) -> dict[str, Any]:
    return {"double": draft.chance(0.7)}


def _dtype(world: World, double: bool) -> None:
    for module in world.units[0].both():
        module.to(torch.float64 if double else torch.float32)


# Draws.

ACTIONS: dict[str, tuple[float, Callable[[Draft], dict[str, Any]], Callable[..., None]]] = {
    "begin": (20, _draw_begin, _begin),
    "advance": (12, _draw_advance, _advance),
    "advance in another mode": (2, _draw_other_mode, _advance),
    "take turns": (4, _draw_turns, _turns),
    "seek": (10, _draw_seek, _seek),
    "change": (12, _draw_change, _change),
    "ordinary run": (7, _draw_ordinary, _ordinary),
    "warm up": (5, _draw_warm_up, _warm_up),
    "random timesteps": (3, _draw_random_timesteps, _random_timesteps),
    "one timestep": (2, _draw_one_timestep, _one_timestep),
    "several timesteps": (1, _draw_mixed, _mixed),
    "fault": (6, _draw_fault, _fault),
    "train": (3, gradients.draw_train, gradients.train),
    "gradient": (4, gradients.draw_gradient, gradients.gradient),
    "validate": (2, gradients.draw_validate, gradients.validate),
    "two threads": (0.7, concurrent.draw, concurrent.run),
    "configure": (3, _draw_configure, _configure),
    "refused": (1, _draw_refused, _refused),
    "detach": (1, _no_params, _detach),
    "attach": (1, _no_params, _attach),
    "reattach": (2, _no_params, _reattach),
    "apply": (3, _draw_apply, _apply),
    "old engine": (1, _no_params, _old_engine),
    "end run": (1, _no_params, _end_run),
    "check": (2, _no_params, _check),
    "wrap": (2, _draw_wrap, _wrap),
    "replace a block": (2, _draw_replace, _replace),
    "copy": (2, _draw_copy, _copy),
    "dtype": (1.5, _draw_dtype, _dtype),
}
"""Every kind of action: its weight, what draws it and what does it."""


def draw_action(draft: Draft) -> Action:
    """Draws an action; what goes on with a loop takes one."""
    kinds = list(ACTIONS)
    while True:
        kind = draft.rng.choices(kinds, [ACTIONS[each][0] for each in kinds])[0]
        if draft.specs or kind not in ("advance", "advance in another mode", "take turns", "seek", "change", "fault"):
            return Action(kind, ACTIONS[kind][1](draft))
