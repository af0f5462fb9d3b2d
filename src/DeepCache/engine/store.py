"""The slots of one run, by the purpose of their calls."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import torch

from DeepCache.engine.slot import Slot

# If one timestep is called forever, every call is a new slot. No pipeline needs more slots than these.
_MOST_SLOTS = 128


class Purpose:
    """The purpose of the calls with one conditioning, or with one name.

    Args:
        ordered: whether the order of several such calls within a step is known not to change.
        partial: whether the run may have begun within a step, so that the first one had fewer calls.

    Attributes:
        calls: how many of them the step has had.
    """

    def __init__(self, ordered: bool, partial: bool = False) -> None:
        self._ordered, self._partial = ordered, partial
        self.calls = 0
        self._before: int | None = None
        self._second_before: int | None = None

    @property
    def continues(self) -> bool:
        """Whether the calls of this step continue those of the step before, one by one.

        The first of several calls could as well continue the last (calls to warm up, and then the loop), until a step
        has had as many calls as the one before it.
        """
        alone = self._before == 1 and not self._partial
        return self._ordered or alone or self._before == self._second_before

    def begin_step(self) -> bool:
        """Begins a step, and returns whether the purpose is still in use."""
        if self.calls or self._before is not None:
            self.calls, self._before, self._second_before = 0, self.calls, self._before
        # A new purpose has had no step yet.
        return self._before != 0


SlotKey = tuple[Purpose, int]
"""A purpose, and how many calls of it came before within a step."""


class _Held(NamedTuple):
    """The latest tensor of a purpose, its `_place`, and the values of the first one."""

    place: Hashable
    tensor: torch.Tensor
    values: torch.Tensor


class Store:
    """The slots of a run. A slot that a step did not use is dropped.

    Calls with equal conditioning have one purpose. Equality is recognised by the address of the tensor, without reading
    its values. They are compared, which requires a device-to-host transfer, only if a program creates the tensor again
    for each call or writes into it.

    Args:
        ordered: whether calls with the same conditioning are known to come in the same order at every step.
        partial: whether the run may have begun within a step.
    """

    def __init__(self, ordered: bool = False, partial: bool = False) -> None:
        self._ordered, self._partial = ordered, partial
        self._slots: dict[SlotKey, Slot] = {}
        self._named: dict[Hashable, Purpose] = {}
        self._held: dict[Purpose, _Held] = {}
        self._places: dict[Hashable, Purpose | None] = {}
        self._calls = 0

    @property
    def bytes(self) -> int:
        return sum(slot.bytes for slot in self._slots.values())

    def begin_step(self) -> None:
        """Drops what the step before did not use."""
        self._calls = 0
        self._slots = {key: slot for key, slot in self._slots.items() if key[0].calls > key[1]}
        self._named = {name: purpose for name, purpose in self._named.items() if purpose.begin_step()}
        self._held = {purpose: each for purpose, each in self._held.items() if purpose.begin_step()}
        if len(self._places) > len(self._held):
            held = {each.place for each in self._held.values()}
            self._places = {place: purpose for place, purpose in self._places.items() if place in held}

    def purpose(self, name: Hashable, conditioning: torch.Tensor | None, within_step: bool = False) -> Purpose:
        """The purpose of a call: by its conditioning if there is one, else by the name that the program gives it.
        `within_step` is whether the call is known not to be the first of a step."""
        if conditioning is not None:
            return self._purpose_of(conditioning, within_step)
        try:
            purpose = self._named.get(name)
        except TypeError as error:
            raise TypeError(f"slot_key must return a hashable value, got {name!r}") from error
        if purpose is None:
            purpose = self._named[name] = Purpose(self._ordered or name is not None, self._partial)
        return purpose

    def key(self, purpose: Purpose) -> SlotKey:
        """The key of the next call of a step."""
        purpose.calls += 1
        self._calls += 1
        if self._calls > _MOST_SLOTS:
            for kept in (self._slots, self._named, self._held, self._places):
                kept.clear()
        return purpose, purpose.calls - 1

    def find(self, key: SlotKey) -> Slot | None:
        return self._slots.get(key)

    def keep(self, key: SlotKey, slot: Slot) -> None:
        if self._calls <= _MOST_SLOTS:
            self._slots[key] = slot

    def drop(self, key: SlotKey) -> None:
        self._slots.pop(key, None)

    def _purpose_of(self, conditioning: torch.Tensor, within_step: bool) -> Purpose:
        place = _place(conditioning)
        known = self._places.get(place)
        if known is not None and not (within_step and known.calls and _may_change_unseen(conditioning)):
            return known
        equal = next((each for each, held in self._held.items() if _is_equal(held.values, conditioning)), None)
        if equal is None:
            equal, values = Purpose(self._ordered, self._partial), conditioning.detach().clone()
        else:
            before, _, values = self._held[equal]
            if before != place and self._places[before] is equal:
                del self._places[before]
        # Held, so that no other tensor gets its address. Its values may still be overwritten.
        self._held[equal] = _Held(place, conditioning, values)
        # A buffer that several conditionings are written into identifies none of them.
        self._places[place] = equal if self._places.get(place, equal) is equal else None
        return equal


def _place(tensor: torch.Tensor) -> Hashable:
    """Identifies a tensor while it is held and nothing is written into it."""
    # Writes into a tensor of inference mode are not counted.
    version = -1 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device, version


def _may_change_unseen(tensor: torch.Tensor) -> bool:
    """Whether values may change while the version does not, as by NumPy or in inference mode. On another device only
    inference mode is considered, since comparing values waits for the device."""
    return tensor.is_inference() or tensor.device.type == "cpu"


def _is_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    return alike and torch.equal(one, other)
