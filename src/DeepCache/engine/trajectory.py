"""Where in a denoising run a U-Net call stands, found without asking the device.

A timestep that a pipeline takes from `scheduler.timesteps` is a view into that list, so its storage offset is its
position in the list. That holds for slices (img2img, refiner) and expanded tensors, costs no transfer, and does not
mind timesteps that stand in the list more than once (Heun, PNDM, KDPM2).

Timesteps of other origin may be anything: random ones of a training loop, or one and the same for ever. Where nothing
shows that they are those of a denoising run, the step is doubtful, and a doubtful step is full.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from DeepCache.engine.timesteps import (
    host_values,
    is_denoising,
    is_list_in,
    is_one_value,
    is_set,
    next_occurrence,
    step_index,
)

__all__ = ["SEVERAL_TIMESTEPS", "StepInfo", "Trajectory"]

SEVERAL_TIMESTEPS = "several timesteps in the batch"
NO_ORDER = "its timestep is from a list in no order"
NO_LIST = "too few timesteps so far that are in no list of the scheduler"
NOT_ADJACENT = "steps were left out before it"
TWICE_LISTED = "the list has its timestep twice, and it was given by value"


class StepInfo(NamedTuple):
    """Where one U-Net call stands.

    Args:
        step: steps since the trajectory began.
        slot: how many U-Net calls came before it at the same step (cond and uncond apart, views of a panorama, …).
        starts: whether it is the first call of a new trajectory.
        steps: how many steps the trajectory has, as far as its list of timesteps tells.
        doubt: why it may not follow the step before; an empty string where it does.
        alone: whether no later step follows it either.
    """

    step: int
    slot: int
    starts: bool
    steps: int | None = None
    doubt: str = ""
    alone: bool = False

    @property
    def belongs_to_no_run(self) -> bool:
        """Whether the call is no step of any denoising run, so that no schedule has to fit it."""
        return self.doubt in (SEVERAL_TIMESTEPS, NO_ORDER)

    @property
    def ends(self) -> bool:
        """Whether no further step can follow."""
        return self.alone or (self.steps is not None and self.step == self.steps - 1)


class _Place(NamedTuple):
    """A position in a list of timesteps. `source` is what tells one list from the next; holding it keeps its address
    from being given to another."""

    source: Any
    position: int
    length: int | None
    doubt: str = ""
    alone: bool = False

    def same_list(self, other: _Place) -> bool:
        if isinstance(self.source, torch.UntypedStorage) and isinstance(other.source, torch.UntypedStorage):
            return self.source.data_ptr() == other.source.data_ptr()
        return self.source is other.source


class Trajectory:
    """Tells the steps of one denoising run, its slots, and the start of the next run.

    A run that stops early and another that goes on over the same list at the next timestep look like one: say so with
    `reset`. Pipelines make a new list for every run.

    Example:
        >>> import torch
        >>> timesteps, trajectory = torch.tensor([9, 6, 6, 3]), Trajectory()
        >>> [trajectory.locate(t, scheduler=None).step for t in timesteps]
        [0, 1, 2, 3]
    """

    def __init__(self) -> None:
        self._place: _Place | None = None
        self._place_before: _Place | None = None
        self._scheduler: Any = None
        self._start = 0
        self._slot = 0
        self._gap = 1
        self._last_value: float | None = None
        # The last values of a run without a list.
        self._values: list[float] = []
        self._host_list: tuple[Any, list[float]] | None = None
        self._own_list: tuple[torch.UntypedStorage, bool] | None = None
        self._unlisted: Any = None
        self._standing: Any = None

    @property
    def places(self) -> tuple[int | None, int]:
        """Where the first and the last call stand in their list; None and 0 before the first."""
        return (None, 0) if self._place is None else (self._start, self._place.position)

    @property
    def source(self) -> Any:
        """The list that it stands in, or its storage; None before the first call."""
        return None if self._place is None else self._place.source

    @property
    def source_before(self) -> Any:
        """That of the run before it."""
        return None if self._place_before is None else self._place_before.source

    def reset(self) -> None:
        """The next call starts a new trajectory."""
        self.__init__()  # type: ignore[misc]

    def __reduce__(self) -> tuple[type[Trajectory], tuple[()]]:
        # The list that it stands in is not copied with it, and torch cannot unpickle its storage.
        return Trajectory, ()

    def locate(self, timestep: Any, scheduler: Any, again: bool = True) -> StepInfo:
        """Where the U-Net call with this timestep stands.

        Args:
            timestep: as given to the U-Net: a tensor of any device, an `int` or a `float`.
            scheduler: the pipeline's scheduler at this moment, or None.
            again: whether a call for the same purpose came before at the last call's step. It tells the next of two
                equal timesteps in a list from a further call at the first of them.
        """
        place = self._find(timestep, scheduler, again)
        last = self._place
        # A pipeline may go on with a copy of its scheduler, over the same timesteps (Text2Video-Zero).
        if (
            last is None
            or scheduler is not self._scheduler
            or not place.same_list(last)
            or place.position < last.position
        ):
            self._start, self._slot, self._gap, self._place_before = place.position, 0, 1, last
            starts, gap = True, 0
        else:
            gap = place.position - last.position
            self._slot = self._slot + 1 if gap == 0 else 0
            starts = False
        doubt = place.doubt or (NOT_ADJACENT if gap not in (0, 1, self._gap) else "")
        self._place, self._scheduler, self._gap = place, scheduler, gap or self._gap
        steps = None if place.length is None else place.length - self._start
        return StepInfo(place.position - self._start, self._slot, starts, steps, doubt, place.alone)

    def _find(self, timestep: Any, scheduler: Any, again: bool) -> _Place:
        timesteps: Any = getattr(scheduler, "timesteps", None)
        if isinstance(timestep, torch.Tensor) and is_one_value(timestep):
            storage, offset = timestep.untyped_storage(), int(timestep.storage_offset())
            if is_list_in(storage, timesteps):
                position = (offset - timesteps.storage_offset()) // timesteps.stride(0)
                return _Place(storage, position, len(timesteps))
            length = storage.nbytes() // timestep.element_size()
            if length > 1:
                ordered = self._is_ordered(storage, timestep)
                return _Place(storage, offset, length, "" if ordered else NO_ORDER, not ordered)
        values = host_values(timestep)
        last = self._last_in(timesteps)
        if len(values) > 1:
            # A window of several steps in one batch (ParaDiGMS): the calls are counted, as far as they are of one list.
            return _Place(timesteps, last.position + 1 if last is not None else 0, None, SEVERAL_TIMESTEPS, True)
        value = values.pop()
        before, self._last_value = self._last_value, value
        listed = self._listed(timesteps)
        if value in listed and self._unlisted is not timesteps and is_set(scheduler):
            return self._find_listed(value, timesteps, step_index(scheduler), again)
        if listed and hasattr(scheduler, "step_index") and self._standing is not timesteps:
            # The U-Net is told something other than the timestep (the latent upscaler's log sigma).
            index = step_index(scheduler) or 0
            if index < len(listed) and (last is None or value == before or index != last.position):
                # From here on a value that is in the list is there by chance.
                self._unlisted = timesteps
                return _Place(timesteps, index, len(listed))
            self._standing = timesteps
        return self._find_unlisted(value, before, timesteps)

    def _find_listed(self, value: float, timesteps: Any, index: int | None, again: bool) -> _Place:
        listed, last = self._listed(timesteps), self._last_in(timesteps)
        if index is not None and index < len(listed) and listed[index] == value:
            return _Place(timesteps, index, len(listed))
        position = next_occurrence(listed, value, last.position if last is not None else -1, again)
        guessed = again and listed.count(value) > 1 and last is not None
        return _Place(timesteps, position, len(listed), TWICE_LISTED if guessed else "")

    def _find_unlisted(self, value: float, before: float | None, timesteps: Any) -> _Place:
        last = self._last_in(timesteps)
        position = last.position if last is not None else 0
        if last is None or before is None:
            self._values = [value]
        elif self._unlisted is not timesteps or not self._values:
            # The value before was in the list by chance, or went by the index of the scheduler.
            self._values = [before]
        self._unlisted = timesteps
        if value != self._values[-1]:
            rises = [after > before for before, after in zip(self._values, [*self._values[1:], value], strict=True)]
            if rises[-1] == rises[0]:
                self._values = [*self._values[-5:], value]
                position += 1
            else:
                # It turned back: a new run.
                self._values, position = [value], 0
        doubt = "" if is_denoising(self._values) else NO_LIST
        # Nothing is kept of the first two values: the third cannot confirm them.
        return _Place(timesteps, position, None, doubt, alone=len(self._values) < 3)

    def _last_in(self, timesteps: Any) -> _Place | None:
        return self._place if self._place is not None and self._place.source is timesteps else None

    def _is_ordered(self, storage: torch.UntypedStorage, timestep: torch.Tensor) -> bool:
        """Whether a list that is none of the scheduler's is one of a denoising run: one transfer a list."""
        if self._own_list is None or self._own_list[0].data_ptr() != storage.data_ptr():
            whole = torch.empty(0, dtype=timestep.dtype, device=timestep.device).set_(storage)
            self._own_list = storage, is_denoising(whole.tolist())
        return self._own_list[1]

    def _listed(self, timesteps: Any) -> list[float]:
        """The list of timesteps on the host: one transfer a trajectory, and only on this path."""
        if self._host_list is None or self._host_list[0] is not timesteps:
            values = [] if timesteps is None else [float(value) for value in torch.as_tensor(timesteps).tolist()]
            self._host_list = (timesteps, values)
        return self._host_list[1]
