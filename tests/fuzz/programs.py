"""The ways in which programs call a denoiser. Each is a generator that pauses between two calls.

Documented limits, which the host cannot recognise, are excluded:

- a second image over the same list with the same conditioning that begins right after the step at which the first has
  stopped, without `end_run()` between them;
- one of several calls with the same conditioning that ends, other than the last;
- DeepCache applied, or a run ended, between two calls with the same conditioning within a step;
- random timesteps that happen to look like a run: neighbours in the scheduler's list, or evenly spaced values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from random import Random
from types import SimpleNamespace
from typing import Any

import torch

from tests.fuzz.session import Finding, Session

Program = Callable[[Session, Random, torch.Generator], Iterator[None]]

_IMAGES = count()

_GIVEN: tuple[Callable[[torch.Tensor], Any], ...] = (
    lambda t: t,
    lambda t: t,
    lambda t: t,
    lambda t: t.expand(1),
    lambda t: t.clone(),
    lambda t: float(t),
    lambda t: int(t),
    lambda t: t.repeat(1),
)


class _Texts:
    """Conditioning by label, as programs pass it: held, as views of one tensor, created again, or in one buffer."""

    def __init__(self, session: Session, random: Random, generator: torch.Generator) -> None:
        self._all = torch.cat([session.random_text(generator) for _ in range(4)])
        self._held = {label: self._all[number : number + 1] for number, label in enumerate("cusv")}
        self._buffer = torch.empty_like(self._held["c"])
        self.kind = random.choice(["held", "held", "views", "created again", "buffer"])

    def __getitem__(self, label: str) -> torch.Tensor:
        text = self._held[label]
        if self.kind == "held":
            return text
        if self.kind == "views":
            return self._all.chunk(4)["cusv".index(label)]
        return text.clone() if self.kind == "created again" else self._buffer.copy_(text)


def _timesteps(random: Random) -> torch.Tensor:
    steps = random.randint(5, 10)
    kind = random.choice(["even", "even", "even", "uneven", "rising", "repeated", "fractions"])
    values = torch.linspace(990, 10, steps).round()
    if kind == "uneven":
        values = torch.tensor(sorted(random.sample(range(1000), steps), reverse=True)).float()
    elif kind == "rising":
        values = values.flip(0)
    elif kind == "repeated":
        values = values.repeat_interleave(2)[1:]
    return values / 1000 if kind == "fractions" else values.long()


def _labels(random: Random, steps: int) -> list[str]:
    """The purposes of the calls of each step, as letters."""
    first, second = random.choice(
        [("c", "c"), ("uc", "uc"), ("cu", "c"), ("uc", "c"), ("c", "uc"), ("cu", "cs"), ("cus", "cs"), ("cu", "uc")]
    )
    change = random.randint(1, steps)
    return [first if step < change else second for step in range(steps)]


def run(session: Session, random: Random, generator: torch.Generator) -> Iterator[None]:
    """A run over a scheduler's list, whole or in part, with guidance that may change, after warm-up calls."""
    texts, timesteps = _Texts(session, random, generator), _timesteps(random)
    session.pipe.scheduler = scheduler = SimpleNamespace(timesteps=timesteps, step_index=None)
    counts = random.random() < 0.4
    for _ in range(random.choice([1, 1, 2])):
        image, start = next(_IMAGES), random.choice([0, 0, 0, random.randint(0, len(timesteps) - 2)])
        stop = random.choice([len(timesteps), len(timesteps), random.randint(start + 1, len(timesteps))])
        given = random.choice(_GIVEN) if timesteps.is_floating_point() is False else _GIVEN[random.randint(0, 4)]
        keyword = random.random() < 0.2
        for warm in range(random.choice([0, 0, 0, 1, 2])):
            sample = session.random_sample(generator)
            session.call((image, "warm", warm), sample, given(timesteps[start]), texts["c"])
            yield
        scheduler.step_index = None
        for step, labels in list(enumerate(_labels(random, len(timesteps))))[start:stop]:
            for label in labels:
                session.pipe.scheduler = scheduler
                session.call(
                    (image, label), session.random_sample(generator), given(timesteps[step]), texts[label], keyword
                )
                yield
            if counts:
                scheduler.step_index = step + 1
        if stop < len(timesteps):
            session.end_run()


def clean_run(session: Session, random: Random, generator: torch.Generator) -> Iterator[None]:
    """An ordinary run, whose steps must match the schedule."""
    texts, image = _Texts(session, random, generator), next(_IMAGES)
    timesteps = torch.linspace(990, 10, random.randint(5, 12)).round().long()
    labels, given = random.choice(["c", "uc", "cus"]), random.choice(_GIVEN[:4])
    session.end_run()
    session.pipe.scheduler = SimpleNamespace(timesteps=timesteps)
    for step, timestep in enumerate(timesteps):
        for label in labels:
            full = session.call((image, label), session.random_sample(generator), given(timestep), texts[label])
            if not session.panoramas and full != (step % session.interval == 0):
                raise Finding(f"step {step} of a clean run at interval {session.interval} is {'full' * full}")
    yield


def panorama(session: Session, random: Random, generator: torch.Generator) -> Iterator[None]:
    """Several views with one prompt; the last of them may end during the run."""
    texts, timesteps, image = _Texts(session, random, generator), _timesteps(random), next(_IMAGES)
    session.pipe.scheduler = scheduler = SimpleNamespace(timesteps=timesteps)
    session.panoramas += 1
    views, change = random.randint(2, 4), random.randint(1, len(timesteps))
    for step, timestep in enumerate(timesteps):
        for view in range(views if step < change else max(1, views - 1)):
            session.pipe.scheduler = scheduler
            session.call((image, view), session.random_sample(generator), timestep, texts["c"])
            yield
    session.panoramas -= 1


def batches(session: Session, random: Random, generator: torch.Generator) -> Iterator[None]:
    """A guided batch of two halves whose guidance is disabled during the run."""
    timesteps, image = _timesteps(random), next(_IMAGES)
    session.pipe.scheduler = scheduler = SimpleNamespace(timesteps=timesteps)
    text, change = session.random_text(generator).repeat(2, 1, 1), random.randint(1, len(timesteps))
    for step, timestep in enumerate(timesteps):
        size = 2 if step < change else 1
        session.pipe.scheduler = scheduler
        session.call((image, size), session.random_sample(generator, size), timestep, text[:size])
        yield


def random_timesteps(session: Session, random: Random, generator: torch.Generator) -> Iterator[None]:
    """Validation losses: one image per call, at unordered timesteps."""
    text = session.random_text(generator)
    values = [value + 13 * (number % 2) * 30 for number, value in enumerate(random.sample(range(0, 500, 3), 9))]
    listed, kind = torch.tensor(values), random.choice(["list", "tensors", "numbers"])
    # Up and down, so that no four of them look like a run.
    zigzag = [value % 400 if number % 2 else 999 - value % 400 for number, value in enumerate(values)]
    session.pipe.scheduler = scheduler = SimpleNamespace(timesteps=None)
    for number in range(len(values)):
        timestep: Any = listed[number]
        if kind != "list":
            timestep = torch.tensor([zigzag[number]]) if kind == "tensors" else zigzag[number]
        session.pipe.scheduler = scheduler
        session.call((next(_IMAGES), "loss"), session.random_sample(generator), timestep, text)
        yield


def one_timestep(session: Session, random: Random, generator: torch.Generator) -> Iterator[None]:
    """Every image at the same timestep."""
    timesteps = random.choice([None, torch.tensor([499]), torch.arange(999, -1, -1)])
    session.pipe.scheduler = scheduler = SimpleNamespace(timesteps=timesteps)
    own, text, fresh = torch.tensor([499]), session.random_text(generator), random.random() < 0.5
    for _ in range(random.choice([5, 20, 200])):
        session.pipe.scheduler = scheduler
        each = session.random_text(generator) if fresh else text
        session.call((next(_IMAGES), "one"), session.random_sample(generator), own, each)
        yield
    session.check_state(attached=True)


def noise_levels(session: Session, random: Random, generator: torch.Generator) -> Iterator[None]:
    """Samplers that pass noise levels that no scheduler lists, once or twice per step, cond and uncond apart."""
    texts, image, steps = _Texts(session, random, generator), next(_IMAGES), random.randint(5, 12)
    levels = [14.6 * (1 - step / steps) ** random.choice([1, 2]) + 0.03 for step in range(steps)]
    stale = random.random() < 0.3
    scheduler = SimpleNamespace(timesteps=None)
    if stale:
        scheduler = SimpleNamespace(timesteps=torch.arange(9, -1, -1), step_index=random.randint(0, 10))
    twice, labels = random.random() < 0.3, random.choice(["c", "uc", "c"])
    for level in levels:
        for part in range(1 + twice):
            for label in labels:
                session.pipe.scheduler = scheduler
                value = level * (1 - 0.01 * part)
                timestep = torch.full((1,), value) if random.random() < 0.8 else value
                session.call((image, label), session.random_sample(generator), timestep, texts[label])
                yield
    session.end_run()


def training(session: Session, random: Random, generator: torch.Generator) -> Iterator[None]:
    """Training at random timesteps, or gradients along a run (null-text inversion)."""
    timesteps, along = _timesteps(random), random.random() < 0.5
    session.pipe.scheduler = scheduler = SimpleNamespace(timesteps=timesteps)
    text, training = session.random_text(generator), random.random() < 0.5
    for step in range(random.randint(1, 4)):
        session.pipe.scheduler = scheduler
        timestep = timesteps[step] if along else torch.tensor([random.randint(0, 999)])
        session.train(session.random_sample(generator), timestep, text, training)
        yield


def interruption(session: Session, random: Random, generator: torch.Generator) -> Iterator[None]:
    """Ctrl-C somewhere in the denoiser during a run."""
    timesteps, image, text = _timesteps(random), next(_IMAGES), session.random_text(generator)
    session.pipe.scheduler = scheduler = SimpleNamespace(timesteps=timesteps)
    at = random.randint(0, len(timesteps) - 1)
    for step, timestep in enumerate(timesteps[: at + 1]):
        session.pipe.scheduler = scheduler
        if step < at:
            session.call((image, "c"), session.random_sample(generator), timestep, text)
        else:
            with session.interrupted(random):
                session.call((image, "c"), session.random_sample(generator), timestep, text)
        yield
    if random.random() < 0.5:
        # The program continues, which is a new run.
        for timestep in timesteps[at:]:
            session.pipe.scheduler = scheduler
            session.call((image, "again"), session.random_sample(generator), timestep, text)
            yield


def changes(session: Session, random: Random, generator: torch.Generator) -> Iterator[None]:
    """Settings, copies and the end of a run, between the calls of other programs."""
    for _ in range(random.randint(1, 3)):
        random.choice([lambda: session.reattach(random), session.copy, session.end_run])()
        session.check_state(attached=True)
        yield


PROGRAMS: dict[str, Program] = {
    each.__name__: each
    for each in (
        run,
        clean_run,
        panorama,
        batches,
        random_timesteps,
        one_timestep,
        noise_levels,
        training,
        interruption,
        changes,
    )
}
