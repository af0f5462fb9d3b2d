"""The position of a U-Net call in a denoising run, found without reading from the device.

A timestep that a pipeline takes from `scheduler.timesteps` is a view into that list, so its storage offset is its
position in the list. That holds for slices (img2img, refiner) and expanded tensors, needs no transfer, and works for
timesteps that are in the list more than once (Heun, PNDM, KDPM2).

Other timesteps may be random ones of a training loop, or always the same one. Unless something shows that they are
those of a denoising run, the step is doubtful, and a doubtful step is full.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch

SEVERAL_TIMESTEPS = "several timesteps in the batch"
NO_ORDER = "its timestep is from an unordered list"
NO_LIST = "too few timesteps so far that are not in a list of the scheduler"
NOT_ADJACENT = "the pipeline omitted steps before it"
TWICE_LISTED = "its timestep is in the list twice and was passed by value"


class StepInfo(NamedTuple):
    """The position of one U-Net call.

    Args:
        step: steps since the run began.
        slot: how many U-Net calls came before it at the same step (cond and uncond apart, views of a panorama, …).
        starts: whether it is the first call of a run.
        steps: how many steps the run has, if known.
        doubt: why it may not follow the step before; empty if it does.
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
        """Whether the call is not a step of any denoising run, so that no schedule has to fit it."""
        return self.doubt in (SEVERAL_TIMESTEPS, NO_ORDER)

    @property
    def ends(self) -> bool:
        """Whether no further step can follow."""
        return self.alone or (self.steps is not None and self.step == self.steps - 1)


class _Place(NamedTuple):
    """A position in a list of timesteps: `source`, which is held so that no other list gets its address."""

    source: Any
    position: int
    length: int | None
    doubt: str = ""
    alone: bool = False


class Trajectory:
    """Finds the steps of one denoising run, its slots, and the start of the next run.

    A run that stops early looks like one run with another that continues over the same list at the next timestep: call
    `reset` between them. Pipelines make a new list for every run.
    """

    def __init__(self) -> None:
        self._place: _Place | None = None
        # The list of the run before this one, or its storage.
        self.source_before: Any = None
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
    def source(self) -> Any:
        """The list of the current run, or its storage."""
        return None if self._place is None else self._place.source

    @property
    def places(self) -> tuple[int | None, int]:
        """The positions of the first and the last call in their list; None and 0 before the first."""
        return (None, 0) if self._place is None else (self._start, self._place.position)

    def reset(self) -> None:
        """Makes the next call start a run."""
        self.__init__()  # type: ignore[misc]

    def __reduce__(self) -> tuple[type[Trajectory], tuple[()]]:
        # The list is not copied along, and torch cannot unpickle its storage.
        return Trajectory, ()

    def locate(self, timestep: Any, scheduler: Any, again: bool = True) -> StepInfo:
        """The position of the U-Net call with this timestep (a tensor or a number) under the current scheduler.

        `again` is whether the last call's step has had a call for the same purpose. It distinguishes the next of two
        equal timesteps in a list from a further call at the first of them.
        """
        place = self._find(timestep, scheduler, again)
        last = self._place
        # A pipeline may continue with a copy of its scheduler over the same timesteps (Text2Video-Zero).
        if (
            last is None
            or scheduler is not self._scheduler
            or address_of(place.source) != address_of(last.source)
            or place.position < last.position
        ):
            self.source_before, self._start, self._slot, self._gap = self.source, place.position, 0, 1
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
        if isinstance(timestep, torch.Tensor) and (timestep.numel() == 1 or not any(timestep.stride())):
            storage, offset = timestep.untyped_storage(), int(timestep.storage_offset())
            if _is_list_in(storage, timesteps):
                position = (offset - timesteps.storage_offset()) // timesteps.stride(0)
                return _Place(storage, position, len(timesteps))
            length = storage.nbytes() // timestep.element_size()
            if length > 1:
                ordered = self._is_ordered(storage, timestep)
                return _Place(storage, offset, length, "" if ordered else NO_ORDER, not ordered)
        values = set(timestep.flatten().tolist()) if isinstance(timestep, torch.Tensor) else {float(timestep)}
        last = self._last_in(timesteps)
        if len(values) > 1:
            # A window of several steps in one batch (ParaDiGMS): the calls over one list are counted.
            return _Place(timesteps, last.position + 1 if last is not None else 0, None, SEVERAL_TIMESTEPS, True)
        value = values.pop()
        before, self._last_value = self._last_value, value
        listed = self._listed(timesteps)
        # Until timesteps are set for a run, many of diffusers' schedulers list every timestep of the training.
        is_set = getattr(scheduler, "num_inference_steps", 0) is not None
        if value in listed and self._unlisted is not timesteps and is_set:
            return self._find_listed(value, timesteps, _step_index(scheduler), again)
        if listed and hasattr(scheduler, "step_index") and self._standing is not timesteps:
            # The U-Net gets something other than the timestep (the latent upscaler's log sigma).
            index = _step_index(scheduler) or 0
            if index < len(listed) and (last is None or value == before or index != last.position):
                # A value of this run that is in the list is there by chance.
                self._unlisted = timesteps
                return _Place(timesteps, index, len(listed))
            self._standing = timesteps
        return self._find_unlisted(value, before, timesteps)

    def _find_listed(self, value: float, timesteps: Any, index: int | None, again: bool) -> _Place:
        """The position of a value: that of the scheduler's index if it fits; else, after the last position, the next
        one where the list repeats the value, the last one, a later one, or (in a new run) the first."""
        listed, last = self._listed(timesteps), self._last_in(timesteps)
        if index is not None and index < len(listed) and listed[index] == value:
            return _Place(timesteps, index, len(listed))
        start = last.position if last is not None else 0
        if again and last is not None and listed[start : start + 2] == [value, value]:
            position = start + 1
        else:
            position = listed.index(value, start) if value in listed[start:] else listed.index(value)
        guessed = again and listed.count(value) > 1 and last is not None
        return _Place(timesteps, position, len(listed), TWICE_LISTED if guessed else "")

    def _find_unlisted(self, value: float, before: float | None, timesteps: Any) -> _Place:
        last = self._last_in(timesteps)
        position = last.position if last is not None else 0
        if last is None or before is None:
            self._values = [value]
        elif self._unlisted is not timesteps or not self._values:
            # The value before was in the list by chance, or its position was the scheduler's index.
            self._values = [before]
        self._unlisted = timesteps
        if value != self._values[-1]:
            rises = [after > before for before, after in zip(self._values, [*self._values[1:], value], strict=True)]
            if rises[-1] == rises[0]:
                self._values = [*self._values[-5:], value]
                position += 1
            else:
                # The direction has changed: a new run.
                self._values, position = [value], 0
        doubt = "" if is_denoising(self._values) else NO_LIST
        # Nothing is kept of the first two values: the third cannot confirm them.
        return _Place(timesteps, position, None, doubt, alone=len(self._values) < 3)

    def _last_in(self, timesteps: Any) -> _Place | None:
        return self._place if self._place is not None and self._place.source is timesteps else None

    def _is_ordered(self, storage: torch.UntypedStorage, timestep: torch.Tensor) -> bool:
        """Whether a list that is not the scheduler's is that of a denoising run: one transfer per list."""
        if self._own_list is None or self._own_list[0].data_ptr() != storage.data_ptr():
            whole = torch.empty(0, dtype=timestep.dtype, device=timestep.device).set_(storage)
            self._own_list = storage, is_denoising(whole.tolist())
        return self._own_list[1]

    def _listed(self, timesteps: Any) -> list[float]:
        """The list of timesteps on the host: one transfer per run, and only on this path."""
        if self._host_list is None or self._host_list[0] is not timesteps:
            values = [] if timesteps is None else [float(value) for value in torch.as_tensor(timesteps).tolist()]
            self._host_list = (timesteps, values)
        return self._host_list[1]


def address_of(source: Any) -> int:
    """Identifies a list of timesteps, or the storage of one, while it is held."""
    return source.data_ptr() if isinstance(source, torch.UntypedStorage) else id(source)


def is_denoising(values: list[float]) -> bool:
    """Whether timesteps are those of a denoising run, and not random ones: they keep their direction, and there are
    six of them, or four that are about evenly spaced (1 of 360 random sixes, 1 of 300 random fours)."""
    # Consecutive equal timesteps count once.
    gaps = [after - before for before, after in pairwise(values) if after != before]
    if len(gaps) < 3 or min(gaps) < 0 < max(gaps):
        return False
    sizes = [abs(gap) for gap in gaps]
    return len(gaps) >= 5 or max(sizes) <= 1.5 * min(sizes)


def _is_list_in(storage: torch.UntypedStorage, timesteps: Any) -> bool:
    is_list = isinstance(timesteps, torch.Tensor) and timesteps.ndim == 1 and timesteps.stride(0) > 0
    return is_list and timesteps.untyped_storage().data_ptr() == storage.data_ptr()


def _step_index(scheduler: Any) -> int | None:
    indices = (getattr(scheduler, name, None) for name in ("step_index", "begin_index"))
    return next((int(index) for index in indices if index is not None), None)
