"""Random sequences of programs with one denoiser, one after the other, interleaved, or each in a thread."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random

import torch

from tests.fuzz.programs import PROGRAMS
from tests.fuzz.session import Session


@dataclass(frozen=True)
class Sequence:
    """A seed of all choices, the programs with their seeds, and their order: `after`, `turns` or `threads`."""

    seed: int
    programs: tuple[tuple[str, int], ...]
    order: str

    @classmethod
    def random(cls, seed: int) -> Sequence:
        random = Random(seed)
        names = random.choices(list(PROGRAMS), (6, 2, 2, 1, 1, 1, 2, 1, 2, 1), k=random.randint(1, 4))
        order = random.choices(["after", "turns", "threads"], (6, 2, 1))[0]
        return cls(seed, tuple((name, random.randrange(2**32)) for name in names), order)

    def play(self) -> Outcome:
        """Plays the programs; raises a `Finding` if an output or the state of the denoiser is wrong."""
        session = Session(self.seed)
        if self.order == "threads":
            self._in_threads(session)
        elif self.order == "turns":
            random = Random(self.seed)
            going = [self._program(session, *each) for each in self.programs]
            while going:
                chosen = random.choice(going)
                if next(chosen, self) is self:
                    going.remove(chosen)
        else:
            for each in self.programs:
                for _ in self._program(session, *each):
                    pass
        session.close()
        return Outcome(session.calls, session.shallow, Counter(name for name, _ in self.programs))

    def _program(self, session: Session, name: str, seed: int):  # type: ignore[no-untyped-def]
        return PROGRAMS[name](session, Random(seed), torch.Generator().manual_seed(seed))

    def _in_threads(self, session: Session) -> None:
        """Each program in its own thread, taking turns like the requests of a server."""
        random = Random(self.seed)
        going = {self._program(session, *each): ThreadPoolExecutor(1) for each in self.programs}
        while going:
            chosen = random.choice(list(going))
            if going[chosen].submit(next, chosen, self).result() is self:
                going.pop(chosen).shutdown()


@dataclass
class Outcome:
    """The number of compared calls, and of shallow ones among them; how often each program was played."""

    calls: int
    shallow: int
    programs: Counter[str]


def shrunk(sequence: Sequence) -> Sequence:
    """The sequence without the programs that it fails without."""
    for number in range(len(sequence.programs)):
        fewer = sequence.programs[:number] + sequence.programs[number + 1 :]
        shorter = Sequence(sequence.seed, fewer, sequence.order)
        try:
            shorter.play()
        except Exception:
            return shrunk(shorter)
    return sequence
