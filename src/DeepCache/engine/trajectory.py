"""Where in a denoising run a U-Net call stands, found without asking the device.

A timestep that a pipeline takes from `scheduler.timesteps` is a view into that list, so its storage offset is its
position in the list. That holds for slices (img2img, refiner) and expanded tensors, costs no transfer, and does not
mind timesteps that stand in the list more than once (Heun, PNDM, KDPM2).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

__all__ = ["StepInfo", "Trajectory"]


class StepInfo(NamedTuple):
    """Where one U-Net call stands.

    Args:
        step: steps since the trajectory began.
        slot: how many U-Net calls came before it at the same step (cond and uncond apart, views of a panorama, …).
        starts: whether it is the first call of a new trajectory.
        steps: how many steps the trajectory has, as far as its list of timesteps tells.
        mixed: whether the samples of the batch stand at several timesteps, so that no deep feature fits the next call.
    """

    step: int
    slot: int
    starts: bool
    steps: int | None = None
    mixed: bool = False

    @property
    def ends(self) -> bool:
        """Whether no further step can follow."""
        return self.steps is not None and self.step == self.steps - 1


class _Place(NamedTuple):
    """A position in a list of timesteps. `source` is what tells one list from the next; holding it keeps its address
    from being given to another."""

    source: Any
    position: int
    length: int | None
    mixed: bool = False

    def same_list(self, other: _Place) -> bool:
        if isinstance(self.source, torch.UntypedStorage) and isinstance(other.source, torch.UntypedStorage):
            return self.source.data_ptr() == other.source.data_ptr()
        return self.source is other.source


class Trajectory:
    """Tells the steps of one denoising run, its slots, and the start of the next run.

    A second call at the position of the last one counts as a further slot. Where it is in truth a new run over the
    same list (a bare U-Net called once to warm up, then looped over), say so with `reset`; pipelines make a new list
    for every run.

    Example:
        >>> import torch
        >>> timesteps, trajectory = torch.tensor([9, 6, 6, 3]), Trajectory()
        >>> [trajectory.locate(t, scheduler=None).step for t in timesteps]
        [0, 1, 2, 3]
    """

    def __init__(self) -> None:
        self._place: _Place | None = None
        self._scheduler: Any = None
        self._start = 0
        self._slot = 0
        self._last_value: float | None = None
        self._rising: bool | None = None
        self._host_list: tuple[Any, list[float]] | None = None
        self._unlisted: Any = None

    def reset(self) -> None:
        """The next call starts a new trajectory."""
        self.__init__()  # type: ignore[misc]

    def __reduce__(self) -> tuple[type[Trajectory], tuple[()]]:
        # The list that it stands in is not copied with it, and torch cannot unpickle its storage.
        return Trajectory, ()

    def locate(self, timestep: Any, scheduler: Any) -> StepInfo:
        """Where the U-Net call with this timestep stands.

        Args:
            timestep: as given to the U-Net: a tensor of any device, an `int` or a `float`.
            scheduler: the pipeline's scheduler at this moment, or None.
        """
        place = self._find(timestep, scheduler)
        last = self._place
        # A pipeline may go on with a copy of its scheduler, over the same timesteps (Text2Video-Zero).
        if (
            last is None
            or scheduler is not self._scheduler
            or not place.same_list(last)
            or place.position < last.position
        ):
            self._start, self._slot = place.position, 0
            starts = True
        else:
            self._slot = self._slot + 1 if place.position == last.position else 0
            starts = False
        self._place, self._scheduler = place, scheduler
        steps = None if place.length is None else place.length - self._start
        return StepInfo(place.position - self._start, self._slot, starts, steps, place.mixed)

    def _find(self, timestep: Any, scheduler: Any) -> _Place:
        timesteps: Any = getattr(scheduler, "timesteps", None)
        if isinstance(timestep, torch.Tensor) and _is_one_value(timestep):
            storage, offset = timestep.untyped_storage(), int(timestep.storage_offset())
            if _is_list_in(storage, timesteps):
                position = (offset - timesteps.storage_offset()) // timesteps.stride(0)
                return _Place(storage, position, len(timesteps))
            length = storage.nbytes() // timestep.element_size()
            if length > 1:
                return _Place(storage, offset, length)
        values = _host_values(timestep)
        if len(values) > 1:
            # A window of several steps in one batch (ParaDiGMS): the calls are counted, as far as they are of one list.
            last = self._place if self._place is not None and self._place.source is timesteps else None
            return _Place(timesteps, last.position + 1 if last is not None else 0, None, mixed=True)
        return self._find_by_value(values.pop(), timesteps, scheduler)

    def _find_by_value(self, value: float, timesteps: Any, scheduler: Any) -> _Place:
        listed = self._listed(timesteps)
        last = self._place if self._place is not None and self._place.source is timesteps else None
        before, self._last_value = self._last_value, value
        position = last.position if last is not None else 0
        index = _index(scheduler)
        if value in listed and self._unlisted is not timesteps:
            position = _next_occurrence(listed, value, position, seen=last is not None)
        elif index is not None:
            # The U-Net is told something other than the timestep (the latent upscaler's log sigma).
            position = index
        else:
            # From here on a value that is in the list is there by chance.
            self._unlisted = timesteps
            if last is not None and before is not None and value != before:
                rising = value > before
                if self._rising is None or rising == self._rising:
                    self._rising = rising
                    position += 1
                else:
                    # It turned back: a new run.
                    self._rising, position = None, 0
        start = self._start if self._unlisted is timesteps and last is not None else 0
        return _Place(timesteps, position, start + len(listed) if listed else None)

    def _listed(self, timesteps: Any) -> list[float]:
        """The list of timesteps on the host: one transfer a trajectory, and only on this path."""
        if self._host_list is None or self._host_list[0] is not timesteps:
            values = [] if timesteps is None else [float(value) for value in torch.as_tensor(timesteps).tolist()]
            self._host_list = (timesteps, values)
        return self._host_list[1]


def _is_one_value(timestep: torch.Tensor) -> bool:
    """Whether the tensor is a single element, or one expanded over a batch."""
    return timestep.numel() == 1 or not any(timestep.stride())


def _is_list_in(storage: torch.UntypedStorage, timesteps: Any) -> bool:
    return (
        isinstance(timesteps, torch.Tensor)
        and timesteps.ndim == 1
        and timesteps.stride(0) > 0
        and timesteps.untyped_storage().data_ptr() == storage.data_ptr()
    )


def _index(scheduler: Any) -> int | None:
    """What the scheduler itself says of its position, where it does."""
    for name in ("step_index", "begin_index"):
        index = getattr(scheduler, name, None)
        if index is not None:
            return int(index)
    return None


def _host_values(timestep: Any) -> set[float]:
    # A tensor made anew for this call tells its values only by a transfer where it lies on a device.
    return set(timestep.flatten().tolist()) if isinstance(timestep, torch.Tensor) else {float(timestep)}


def _next_occurrence(listed: list[float], value: float, position: int, seen: bool) -> int:
    """The position of a value: the one after the current where the list repeats it, else the current, else the next,
    else (a new run over the same list) the first."""
    if seen and position + 1 < len(listed) and listed[position] == listed[position + 1] == value:
        return position + 1
    return listed.index(value, position) if value in listed[position:] else listed.index(value)
