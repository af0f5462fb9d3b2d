"""What is kept between the calls of one run, by slot."""

from __future__ import annotations

from collections.abc import Hashable

from DeepCache.engine.slot import Slot

__all__ = ["Store"]


class Store:
    """The slots of a run. A slot that a step did not use is dropped: when it comes back it is another one.

    Example:
        >>> store = Store()
        >>> store.begin_step()
        >>> store.find("cond") is None
        True
    """

    def __init__(self) -> None:
        self._slots: dict[Hashable, Slot] = {}
        self._used: set[Hashable] = set()

    @property
    def bytes(self) -> int:
        """Size of what is kept."""
        return sum(slot.bytes for slot in self._slots.values())

    def begin_step(self) -> None:
        """Drops what the step before did not use."""
        if len(self._slots) > len(self._used):
            self._slots = {key: slot for key, slot in self._slots.items() if key in self._used}
        self._used.clear()

    def find(self, key: Hashable) -> Slot | None:
        """The slot of a call, or None where nothing is kept for it."""
        self._used.add(key)
        return self._slots.get(key)

    def keep(self, key: Hashable, slot: Slot) -> None:
        """Keeps a slot from now on."""
        self._slots[key] = slot

    def drop(self, key: Hashable) -> None:
        """Forgets a slot."""
        self._slots.pop(key, None)

    def __len__(self) -> int:
        return len(self._slots)
