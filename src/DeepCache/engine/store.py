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
        >>> store.key("cond"), store.key("uncond"), store.key("cond")
        (('cond', 0), ('uncond', 0), ('cond', 1))
    """

    def __init__(self) -> None:
        self._slots: dict[tuple[Hashable, int], Slot] = {}
        self._calls: dict[Hashable, int] = {}

    @property
    def bytes(self) -> int:
        """Size of what is kept."""
        return sum(slot.bytes for slot in self._slots.values())

    def begin_step(self) -> None:
        """Drops what the step before did not use."""
        for key in [key for key in self._slots if self._calls.get(key[0], 0) <= key[1]]:
            del self._slots[key]
        self._calls.clear()

    def key(self, name: Hashable) -> tuple[Hashable, int]:
        """The key of the next call of a step: its name, and how many calls of that name came before it.

        Raises:
            TypeError: the name is not hashable.
        """
        try:
            count = self._calls.get(name, 0)
        except TypeError as error:
            raise TypeError(f"slot_key must return a hashable value, got {name!r}") from error
        self._calls[name] = count + 1
        return name, count

    def find(self, key: tuple[Hashable, int]) -> Slot | None:
        """The slot of a call, or None where nothing is kept for it."""
        return self._slots.get(key)

    def keep(self, key: tuple[Hashable, int], slot: Slot) -> None:
        """Keeps a slot from now on."""
        self._slots[key] = slot

    def drop(self, key: tuple[Hashable, int]) -> None:
        """Forgets a slot."""
        self._slots.pop(key, None)
