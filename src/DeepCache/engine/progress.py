"""How far one thread is with its denoising run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from DeepCache.engine.run import Call, Run
from DeepCache.engine.store import Purpose
from DeepCache.engine.trajectory import SEVERAL_TIMESTEPS, StepInfo, Trajectory
from DeepCache.engine.unets import is_from_diffusers, running_pipeline, scheduler_of

__all__ = ["Progress", "Threads"]

_MOST_LISTS = 64


class Progress:
    """What passes from one call of a denoiser to the next in the same thread: the threads of a server generate with one
    model in turn, each with a run of its own.

    Args:
        run: a run of which nothing has begun yet.
        denoiser: the denoiser.
        pipe: the pipeline that DeepCache was applied to.
        name: what it calls the denoiser.

    Attributes:
        run: the run that is in progress, or was last.
        running: whether it is in progress.
        pipe: the pipeline whose run it is.
        in_pipeline: whether its loop is one of diffusers' own, which makes the same calls at every step and none to
            warm up.
        partial: whether one over the same list was left unfinished, so that it may have begun within a step of that.
        call: the call in flight, where it is a step.
        begun: a call that the guard has begun and the hook has not seen yet.
    """

    def __init__(self, run: Run, denoiser: nn.Module, pipe: Any, name: str) -> None:
        self.run = run
        self.running = False
        self.pipe = self._applied_to = pipe
        self.in_pipeline = False
        self.partial = False
        self._finished = True
        self._unfinished = _Lists()
        self.call: Call | None = None
        self.begun: Call | None = None
        self._denoiser, self._name = denoiser, name
        self._trajectory = Trajectory()

    @property
    def places(self) -> tuple[int | None, int]:
        """Where the first and the last call of the run stand in their list; None and 0 before the first."""
        return self._trajectory.places

    def begin(self, run: Run) -> Run:
        """Begins a run, and returns it."""
        self.run, self.running = run, True
        return run

    def locate(self, timestep: Any, purpose: Purpose) -> StepInfo:
        """Where a call stands; at the start of a run, whose run it is.

        Args:
            timestep: its timestep.
            purpose: what it is for.
        """
        scheduler = scheduler_of(self.pipe, self._name)
        info = self._trajectory.locate(timestep, scheduler, again=purpose.calls > 0)
        if not info.starts:
            self._finished = info.ends
            if info.ends and self.partial:
                self._unfinished.discard(self._trajectory.source)
            return self._without_doubt(info)
        before = self._trajectory.source_before
        running = running_pipeline(self._denoiser, self._name)
        self.in_pipeline = running is not None and is_from_diffusers(running)
        self.pipe = self._applied_to if running is None else running
        if scheduler_of(self.pipe, self._name) is not scheduler:
            self._trajectory.reset()
            info = self._trajectory.locate(timestep, scheduler_of(self.pipe, self._name))
        if not self._finished:
            self._unfinished.add(before)
        self.partial, self._finished = self._trajectory.source in self._unfinished, info.ends
        return self._without_doubt(info)

    def _without_doubt(self, info: StepInfo) -> StepInfo:
        """In a loop of diffusers' own every call is a step: it may leave some out (RePaint), or give its U-Net noise
        levels that nothing lists (Karras-Ve)."""
        if self.in_pipeline and info.doubt and info.doubt != SEVERAL_TIMESTEPS:
            return info._replace(doubt="", alone=False)
        return info

    def end_run(self) -> None:
        """Forgets the run and all that its steps stored; what was noted of it stays."""
        if not self._finished:
            self._unfinished.add(self._trajectory.source)
        self.call = self.begun = None
        self.running = False
        self.pipe = self._applied_to
        self.run.forget()
        self._trajectory.reset()

    def finish(self) -> None:
        """Ends a run that has come to its end, so that the next call is the first of another image."""
        self.end_run()
        self._finished = True
        self._unfinished.clear()


class _Lists:
    """Lists of timesteps, the latest few. They are held: the address of one that is freed may be the next one's."""

    def __init__(self) -> None:
        self._lists: dict[int, Any] = {}

    def __contains__(self, timesteps: Any) -> bool:
        return _address(timesteps) in self._lists

    def __reduce__(self) -> tuple[type[_Lists], tuple[()]]:
        # Copied runs go over copied lists.
        return _Lists, ()

    def add(self, timesteps: Any) -> None:
        self._lists[_address(timesteps)] = timesteps
        if len(self._lists) > _MOST_LISTS:
            del self._lists[next(iter(self._lists))]

    def discard(self, timesteps: Any) -> None:
        self._lists.pop(_address(timesteps), None)

    def clear(self) -> None:
        self._lists.clear()


def _address(timesteps: Any) -> int:
    return timesteps.data_ptr() if isinstance(timesteps, torch.UntypedStorage) else id(timesteps)


class Threads:
    """The progress of each thread that calls a denoiser.

    Args:
        begin: makes that of a thread's first call.
    """

    def __init__(self, begin: Callable[[], Progress]) -> None:
        self._begin = begin
        self._progress: dict[int, Progress] = {}

    def here(self) -> Progress:
        """That of this thread."""
        here = threading.get_ident()
        if here not in self._progress:
            alive = {thread.ident for thread in threading.enumerate()}
            self._progress = {thread: each for thread, each in self._progress.items() if thread in alive}
            self._progress[here] = self._begin()
        return self._progress[here]

    def end_runs(self) -> None:
        """Ends the runs of all threads."""
        for progress in self._progress.values():
            progress.end_run()
