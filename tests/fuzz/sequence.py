"""Sequences of actions: drawn from a seed, played, and made as short as they can be."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch

from tests.fuzz.actions import ACTIONS, Action, Draft, draw_action
from tests.fuzz.library import DEEPCACHE, Library
from tests.fuzz.oracle import output_of
from tests.fuzz.settings import draw_setting
from tests.fuzz.unets import KINDS
from tests.fuzz.world import Finding, Setup, World, _trace

__all__ = ["Played", "Sequence", "draw_sequence", "play", "shrink"]

_TRIES = 120


@dataclass(frozen=True)
class Sequence:
    """A setup and what is done with it.

    Args:
        seed: what it was drawn from.
        setup: what it begins with.
        actions: what it does, in order.
        numbers: which of the actions of its seed these are.
    """

    seed: int
    setup: Setup
    actions: tuple[Action, ...]
    numbers: tuple[int, ...]

    @property
    def name(self) -> str:
        """What `--replay` takes."""
        return f"{self.seed}:{','.join(map(str, self.numbers))}"

    def only(self, numbers: Iterable[int]) -> Sequence:
        """The same with nothing but the actions of these numbers."""
        kept = set(numbers)
        pairs = [(n, action) for n, action in zip(self.numbers, self.actions, strict=True) if n in kept]
        return replace(self, actions=tuple(action for _, action in pairs), numbers=tuple(n for n, _ in pairs))

    def lines(self) -> list[str]:
        """The sequence as text, a line for each action."""
        return [f"  {self.setup}", *(f"  {action}" for action in self.actions)]


@dataclass
class Played:
    """What came of a sequence.

    Args:
        finding: what must not have happened; None where all is well.
        counts: of calls, of shallow ones, of actions.
        log: a line for each action and each call.
    """

    finding: Finding | None
    counts: Counter[str]
    log: list[str] = field(default_factory=list)


def draw_sequence(seed: int) -> Sequence:
    """The sequence of a seed."""
    rng = random.Random(seed)
    kind = rng.choices(list(KINDS), (55, 43, 2))[0]
    branches = len(KINDS[kind].producers)
    setup = Setup(
        kind=kind,
        way=rng.choice(("pipe", "pipe", "pipe", "bare", "helper")),
        setting=draw_setting(rng, branches),
        frozen=rng.random() < 0.5,
        conditioning="text" if kind == "diffusers" else rng.choice(("text",) * 7 + ("added", "added", "none")),
        scheduler=rng.random() < 0.9,
    )
    draft = Draft(rng, setup, branches)
    count = rng.randint(2, 4) if kind == "diffusers" else rng.randint(3, 9)
    actions = tuple(draw_action(draft) for _ in range(count))
    return Sequence(seed, setup, actions, tuple(range(count)))


def play(sequence: Sequence, library: Library = DEEPCACHE) -> Played:
    """Plays a sequence up to the first finding."""
    world, finding = None, None
    counts: Counter[str] = Counter()
    log: list[str] = []
    try:
        world = World(sequence.setup, library)
        for action in sequence.actions:
            world.log.append(f"  {action}")
            ACTIONS[action.kind][2](world, **action.params)
            world.counts[f"action: {action.kind}"] += 1
            world.check()
        _finish(world)
    except Finding as found:
        finding = found
    except Exception as error:  # noqa: BLE001
        finding = Finding("the fuzzer itself failed", _trace(error))
    if world is not None:
        world.close()
        counts, log = world.counts, world.log
    return Played(finding, counts, log)


def _finish(world: World) -> None:
    """Takes DeepCache off all U-Nets, which are then as they were."""
    world.log.append("  (end of the sequence)")
    for unit in reversed(world.units):
        world.remove(unit)
        sample = torch.ones(1, *world.kind.shape(2), dtype=unit.dtype)
        text = torch.ones(1, 3, 4, dtype=unit.dtype)
        args, kwargs = world.kind.arguments(sample, 5, text, None, False, False)
        with torch.no_grad():
            found, expected = output_of(unit.module(*args, **kwargs)), unit.twin.whole(args, kwargs)[0]
        if not torch.equal(found, expected):
            raise Finding("other output after detach", "of the U-Net")


def shrink(sequence: Sequence, finding: Finding, library: Library = DEEPCACHE) -> Sequence:
    """The sequence with as few actions as still lead to a finding of the same kind."""
    tries = 0

    def found(shorter: Sequence) -> bool:
        nonlocal tries
        tries += 1
        again = play(shorter, library).finding
        return again is not None and again.kind == finding.kind

    size = max(1, len(sequence.actions) // 2)
    while size and tries < _TRIES:
        removed = False
        for first in range(0, len(sequence.numbers), size):
            shorter = sequence.only([*sequence.numbers[:first], *sequence.numbers[first + size :]])
            if found(shorter):
                sequence, removed = shorter, True
                break
        if not removed:
            size //= 2
    return sequence
