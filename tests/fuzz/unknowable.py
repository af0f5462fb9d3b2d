"""Situations in which nothing on the host tells another image from the next step of the last one.

These are the only ones that the fuzzer steers around: where a call would make one, the run is ended first, as the
documentation asks programs to do. How often that happened is part of a result.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["UNKNOWABLE", "Seen", "Sight"]


class Seen(NamedTuple):
    """What a program shows of a call on the host.

    Args:
        list: what tells its list of timesteps from others; None where its timestep stands in no list.
        place: the place in that list, or the value of the timestep where there is no list.
        ordered: whether the values of the list only fall or only rise.
        conditioning: what tells its conditioning from others: objects, the state of their contents, options.
        shape: of the sample, with its dtype.
        thread: the thread.
        purpose: which image and which conditioning it is for, which a program does not show.
    """

    list: Hashable
    place: float
    ordered: bool
    conditioning: Hashable
    shape: Hashable
    thread: int
    purpose: Hashable

    def looks_like(self, other: Seen) -> bool:
        """Whether nothing but its place tells it from another call."""
        return (self.list, self.conditioning, self.shape, self.thread) == (
            other.list,
            other.conditioning,
            other.shape,
            other.thread,
        )


@dataclass
class Sight:
    """What was seen of one U-Net since a run was last ended: the calls at the latest place, and at the one before."""

    before: list[Seen] = field(default_factory=list)
    latest: list[Seen] = field(default_factory=list)
    rising: bool | None = None

    def add(self, seen: Seen) -> None:
        """Takes the next call."""
        last = self.latest[-1] if self.latest else None
        if last is None or (last.list, last.place) != (seen.list, seen.place):
            if last is not None:
                self.rising = seen.place > last.place if last.list == seen.list else None
            self.before, self.latest = self.latest, []
        self.latest.append(seen)

    def clear(self) -> None:
        """Forgets it all."""
        self.before, self.latest, self.rising = [], [], None

    def alone(self, seen: Seen) -> Seen | None:
        """The call that looks like this one at the latest place, where there is one such call and another place."""
        alike = [each for each in self.latest if each.looks_like(seen)]
        return alike[0] if len(alike) == 1 and alike[0].place != seen.place else None


def _next_in_the_list(sight: Sight, seen: Seen) -> bool:
    last = sight.alone(seen)
    return (
        last is not None
        and last.purpose != seen.purpose
        and seen.list is not None
        and seen.ordered
        and seen.place == last.place + 1
    )


def _on_without_a_list(sight: Sight, seen: Seen) -> bool:
    last = sight.alone(seen)
    return (
        last is not None
        and last.purpose != seen.purpose
        and seen.list is None
        and (sight.rising is None or sight.rising == (seen.place > last.place))
    )


UNKNOWABLE: dict[str, tuple[Callable[[Sight, Seen], bool], str]] = {
    "next in the list": (
        _next_in_the_list,
        "another image begins exactly at the step after the one at which the last image stopped, over the same list of "
        "timesteps and with the very same conditioning tensors",
    ),
    "on without a list": (
        _on_without_a_list,
        "there is no list of timesteps, and another image begins with the very same conditioning tensors at a value "
        "that goes on in the direction of the last one",
    ),
}
"""Each situation with what finds it and the reason why nothing can be known."""
