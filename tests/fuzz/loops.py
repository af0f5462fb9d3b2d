"""Denoising loops, one step at a time, so that anything may come between two steps."""

from __future__ import annotations

import random
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tests.fuzz.unknowable import Seen
from tests.fuzz.world import Fault, Request, Unit, World, ordered

__all__ = ["BY_VALUE", "VIEWS", "Loop", "Spec", "draw_roles", "draw_values"]

VIEWS = ("view", "index", "expand", "one")
BY_VALUE = ("int", "float", "clone", "repeat", "double", "static")
EMPTY_PROMPT = 0


@dataclass(frozen=True)
class Spec:
    """One denoising loop.

    Args:
        image: tells its noise from that of other images.
        values: its timesteps.
        how: how a timestep is given: a view of the list (`VIEWS`) or its value (`BY_VALUE`).
        where: which list it goes over: a new one of the scheduler, the one that the scheduler has (`"same"`), one of
            its own (`"own"`), or none.
        roles: the calls of a step, in order.
        prompt: its prompt.
        encoding: how many times the prompt had been encoded; with another number it is another tensor.
        conds: whether the conditioning is one tensor (`"persistent"`), made in inference mode (`"inference"`), a view
            (`"chunk"`), made again for every call (`"clone"`, `"cat"`), written into one buffer (`"static"`) or another
            one at each step for the empty prompt (`"steps"`).
        batch: images at a time.
        size: of the sample.
        start: how many timesteps are left out at the beginning.
        mode: whether gradients are on.
        thread: the thread that makes the calls.
        keywords: whether all arguments are given by name.
        inplace: whether the sample is one tensor that is written over.
        dirty: whether the program writes over what the U-Net returned.
        counts: whether the scheduler counts its steps.
        unit: which copy of the U-Net is called.
        pipe: whose scheduler it is.
        strict: whether the steps must be exactly those of the schedule.
    """

    image: int
    values: tuple[float, ...]
    how: str = "view"
    where: str = "scheduler"
    roles: tuple[str, ...] = ("cond",)
    prompt: int = 1
    encoding: int = 0
    conds: str = "persistent"
    batch: int = 1
    size: int = 2
    start: int = 0
    mode: str = "no_grad"
    thread: int = 0
    keywords: bool = False
    inplace: bool = False
    dirty: bool = False
    counts: bool = False
    unit: int = 0
    pipe: int = 0
    strict: bool = False

    def __repr__(self) -> str:
        plain = Spec(0, ())
        told = {name: value for name, value in vars(self).items() if value != getattr(plain, name)}
        return ", ".join(f"{name}={value}" for name, value in told.items())


class Loop:
    """A loop in progress.

    Args:
        world: what it acts on.
        number: its number.
        spec: what it is.
    """

    def __init__(self, world: World, number: int, spec: Spec) -> None:
        self.world, self.number, self.spec = world, number, spec
        self.run = world.new_run()
        self.unit: Unit = world.units[min(spec.unit, len(world.units) - 1)]
        self.scheduler = self.unit.pipes[spec.pipe].scheduler
        self.timesteps, self.list = self._take_list()
        self.index, self.ordinal = min(spec.start, len(self.timesteps) - 1), 0
        self.sample = self._noise()

    @property
    def done(self) -> bool:
        """Whether it has come to the end of its list."""
        return self.index >= len(self.timesteps)

    def step(self, mode: str | None = None, fault: Fault | None = None, at: int = 0) -> bool:
        """Makes one step, and says whether it did; an error of the program's own may end it.

        Args:
            mode: whether gradients are on; by default as the loop has it.
            fault: an error to raise.
            at: in which of its calls.
        """
        outputs = []
        for place, role in enumerate(self.spec.roles):
            request = self.request(role, mode or self.spec.mode)
            output = self.world.call(self.unit, request, fault if place == at % len(self.spec.roles) else None)
            if output is None:
                return False
            outputs.append(output.detach())
        self.advance(outputs)
        return True

    def advance(self, outputs: list[Tensor]) -> None:
        """Takes the outputs of a step and goes to the next one."""
        with torch.no_grad():
            moved = torch.stack([output[: self.spec.batch].clone() for output in outputs]).mean(0)
            following = 0.9 * self.sample + 0.2 * torch.tanh(moved)
            if self.spec.dirty:
                for output in outputs:
                    # An output made in inference mode may be changed in that mode only.
                    with torch.inference_mode(output.is_inference()):
                        output.mul_(0).add_(7)
            self.sample = self.sample.copy_(following) if self.spec.inplace else following
        self.index += 1
        self.ordinal += 1
        if self.spec.counts and self.scheduler is not None:
            self.scheduler.step_index = self.index

    def seek(self, index: int, image: int | None) -> None:
        """Goes to another place of the list, with this image or with another one, which is another run."""
        self.index = min(index, len(self.timesteps) - 1)
        if image is not None:
            self.spec = replace(self.spec, image=image)
            self.run, self.ordinal = self.world.new_run(), 0
            self.sample = self._noise()

    def change(self, **changes: Any) -> None:
        """Changes what it is in mid-run."""
        before, self.spec = self.spec, replace(self.spec, **changes)
        if (before.batch, before.size) != (self.spec.batch, self.spec.size):
            self.sample = self._noise()

    def request(self, role: str, mode: str) -> Request:
        """The call of one role at this step."""
        spec, dtype = self.spec, self.unit.dtype
        if self.sample.dtype != dtype:
            self.sample = self.sample.to(dtype)
        content, skip = self._content(role)
        text, key = self._text(role, content, mode)
        added = None
        if self.world.setup.conditioning == "added":
            batch = spec.batch * (1 + (role == "batch"))
            added = self.world.text(100 + content, spec.encoding, batch, dtype)
            key = (key, 100 + content, spec.encoding)
        sample = self._sample(role)
        timestep = self._timestep(len(sample))
        listing, place, ordered = self._where()
        purpose = (self.run, role, content)
        shape = (*sample.shape, dtype)
        seen = Seen(listing, place, ordered, (key, skip), shape, spec.thread, purpose)
        expect = self._expected(mode) if spec.strict else "full" if self._wants_gradient(mode) else None
        return Request(
            purpose, seen, self.index, self.ordinal, sample, timestep, text, added, skip, spec.keywords, mode, expect
        )

    def _wants_gradient(self, mode: str) -> bool:
        return mode == "grad" and any(each.requires_grad for each in self.unit.module.parameters())

    def _expected(self, mode: str) -> str | int:
        branch = self.unit.setting.step(self.ordinal)
        return "full" if branch is None else branch

    def _noise(self) -> Tensor:
        spec = self.spec
        generator = torch.Generator().manual_seed(1000 + spec.image)
        sample = torch.randn(spec.batch, *self.world.kind.shape(spec.size), generator=generator).to(self.unit.dtype)
        return self.world.buffer("sample", sample) if spec.inplace else sample

    def _sample(self, role: str) -> Tensor:
        if role == "batch":
            return torch.cat([self.sample] * 2)
        if role.startswith("view"):
            return self.sample + 0.3 * int(role[4:])
        return self.sample + 0.2 if role == "hidden" else self.sample

    def _content(self, role: str) -> tuple[int, bool]:
        """The number of the prompt of a role, and whether it leaves out layers."""
        if role == "uncond":
            return EMPTY_PROMPT, False
        if role == "third":
            return 50 + self.spec.prompt, False
        return self.spec.prompt, role == "skip" and self.world.kind.takes_skip

    def _text(self, role: str, content: int, mode: str) -> tuple[Tensor | None, Hashable]:
        """The conditioning of a call, and what tells it from others on the host."""
        world, spec, dtype = self.world, self.spec, self.unit.dtype
        if world.setup.conditioning == "none":
            return None, ()
        contents = (EMPTY_PROMPT, content) if role == "batch" else (content,)
        parts = [world.text(each, spec.encoding, spec.batch, dtype) for each in contents]
        key: Hashable = (contents, spec.encoding, spec.batch, dtype)
        if spec.conds in ("persistent", "inference", "chunk") or (spec.conds == "steps" and role != "uncond"):
            return self._kept(role, contents, parts, key)
        fresh: Hashable = ("new", world.new_run())
        if spec.conds == "static":
            return world.buffer("text", torch.cat(parts)), fresh
        if spec.conds == "steps":
            return world.text(EMPTY_PROMPT, 1000 + self.index, spec.batch, dtype), fresh
        return torch.cat(parts) if spec.conds == "cat" else torch.cat(parts).clone(), fresh

    def _kept(
        self, role: str, contents: tuple[int, ...], parts: list[Tensor], key: Hashable
    ) -> tuple[Tensor, Hashable]:
        world, spec, dtype = self.world, self.spec, self.unit.dtype
        if spec.conds == "chunk":
            # One tensor for all prompts of the program, of which every call gets a view.
            whole = world.kept(("chunk", spec.encoding, spec.batch, dtype, spec.prompt), self._all_prompts)
            rows = whole.chunk(3)
            if len(contents) > 1:
                # The prompt comes before a third one, so the first two are the batch.
                return whole[: 2 * spec.batch], ("chunk", key)
            return rows[(EMPTY_PROMPT, spec.prompt, 50 + spec.prompt).index(contents[0])], ("chunk", key, spec.prompt)
        if len(parts) > 1:
            return world.kept(("cat", key), lambda: torch.cat(parts)), ("cat", key)
        if spec.conds == "inference":
            return world.text(contents[0], spec.encoding, spec.batch, dtype, inference=True), ("inference", key)
        return parts[0], key

    def _all_prompts(self) -> Tensor:
        spec, dtype = self.spec, self.unit.dtype
        contents = (EMPTY_PROMPT, spec.prompt, 50 + spec.prompt)
        return torch.cat([self.world.text(each, spec.encoding, spec.batch, dtype) for each in contents])

    # Timesteps.

    def _take_list(self) -> tuple[Tensor, Hashable]:
        spec, scheduler = self.spec, self.scheduler
        if spec.where in ("scheduler", "same") and scheduler is not None:
            if spec.where == "scheduler" or scheduler.timesteps is None:
                scheduler.set_timesteps(spec.values)
            assert scheduler.timesteps is not None
            return scheduler.timesteps, ("list", scheduler.serial)
        return torch.tensor(spec.values), ("own", self.world.new_run())

    def _timestep(self, batch: int) -> Any:
        how, timestep = self.spec.how, self.timesteps[self.index]
        if self.spec.where == "none" and how in VIEWS:
            how = "float"
        made = {
            "view": lambda: timestep,
            "index": lambda: list(self.timesteps)[self.index],
            "expand": lambda: timestep.expand(batch),
            "one": lambda: timestep[None],
            "int": lambda: timestep.item(),
            "float": lambda: float(timestep),
            "clone": lambda: timestep.clone(),
            "repeat": lambda: timestep.repeat(batch),
            "double": lambda: timestep.to(torch.float64),
            "static": lambda: self.world.buffer("timestep", timestep),
        }
        return made[how]()

    def _where(self) -> tuple[Hashable, float, bool]:
        """The list that DeepCache can see this timestep in, its place there, and whether the list is ordered."""
        if self.spec.how in VIEWS and self.spec.where != "none" and len(self.timesteps) > 1:
            return self.list, self.index, ordered(self.timesteps.tolist())
        own = (self.list, self.index)
        return self.world.place_of(self.unit, float(self.timesteps[self.index]), own)


def draw_values(rng: random.Random, steps: int) -> tuple[float, ...]:
    """A list of timesteps of some kind of scheduler."""
    kind = rng.choice(("ddim", "ddim", "ddim", "float", "heun", "rising", "sigmas", "plms"))
    spread = sorted(rng.sample(range(1, 999), steps), reverse=True)
    if kind == "float":
        return tuple(each + 0.25 for each in spread)
    if kind == "heun":
        return tuple([spread[0], *(each for each in spread[1:] for _ in range(2))][:steps])
    if kind == "plms":
        return (spread[0], spread[1], *spread[1 : steps - 1])
    if kind == "rising":
        return tuple(reversed(spread))
    if kind == "sigmas":
        return tuple(round(14.6 * (1 - index / steps) ** 3 + 0.03, 4) for index in range(steps))
    return tuple(spread)


def draw_roles(rng: random.Random) -> tuple[str, ...]:
    """The calls of a step."""
    return rng.choice(
        (
            ("cond",),
            ("cond",),
            ("batch",),
            ("uncond", "cond"),
            ("uncond", "cond"),
            ("cond", "uncond"),
            ("uncond", "cond", "skip"),
            ("cond", "hidden"),
            ("hidden", "uncond", "cond"),
            ("uncond", "cond", "third"),
            ("view0", "view1", "view2"),
        )
    )
