"""The progress of one thread through its denoising run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import nn

from DeepCache.engine.run import Call, Run
from DeepCache.engine.store import Purpose
from DeepCache.engine.trajectory import SEVERAL_TIMESTEPS, StepInfo, Trajectory, address_of
from DeepCache.engine.unets import is_from_diffusers, running_pipeline, scheduler_of

_MOST_LISTS = 64


class Progress:
    """The state that passes from one call of a denoiser to the next in the same thread: the threads of a server
    generate with one model in turn, each with its own run.

    Attributes:
        run: the current or last run.
        running: whether it is in progress.
        pipe: the pipeline that runs.
        in_pipeline: whether its loop is one of diffusers' own, which makes the same calls at every step and none to
            warm up.
        partial: whether one over the same list was not finished, so that this one may begin within a step.
        call: the call in flight, if it is a step.
        begun: a call that the guard has begun and the hook has not seen yet.
    """

    def __init__(self, run: Run, denoiser: nn.Module, pipe: Any, name: str) -> None:
        self.run = run
        self.running = self.in_pipeline = self.partial = False
        self.pipe = self._applied_to = pipe
        self.call: Call | None = None
        self.begun: Call | None = None
        self._finished = True
        self._unfinished = _Lists()
        self._denoiser, self._name = denoiser, name
        self._trajectory = Trajectory()

    @property
    def places(self) -> tuple[int | None, int]:
        return self._trajectory.places

    def begin(self, run: Run) -> Run:
        """Begins a run, and returns it."""
        self.run, self.running = run, True
        return run

    def locate(self, timestep: Any, purpose: Purpose) -> StepInfo:
        """The position of a call; at the start of a run, also finds the pipeline that runs."""
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
        """In a loop of diffusers' own every call is a step: it may omit some (RePaint), or give its U-Net noise levels
        that are in no list (Karras-Ve)."""
        if self.in_pipeline and info.doubt and info.doubt != SEVERAL_TIMESTEPS:
            return info._replace(doubt="", alone=False)
        return info

    def end_run(self) -> None:
        """Forgets the run and all that its steps stored; its record stays."""
        if not self._finished:
            self._unfinished.add(self._trajectory.source)
        self.call = self.begun = None
        self.running = False
        self.pipe = self._applied_to
        self.run.forget()
        self._trajectory.reset()

    def finish(self) -> None:
        """Ends a complete run, so that the next call is the first of another image."""
        self.end_run()
        self._finished = True
        self._unfinished = _Lists()


class _Lists:
    """The latest few lists of timesteps. They are held, so that no other list gets their address."""

    def __init__(self) -> None:
        self._lists: dict[int, Any] = {}

    def __contains__(self, timesteps: Any) -> bool:
        return address_of(timesteps) in self._lists

    def __reduce__(self) -> tuple[type[_Lists], tuple[()]]:
        # Copied runs use copied lists.
        return _Lists, ()

    def add(self, timesteps: Any) -> None:
        self._lists[address_of(timesteps)] = timesteps
        if len(self._lists) > _MOST_LISTS:
            del self._lists[next(iter(self._lists))]

    def discard(self, timesteps: Any) -> None:
        self._lists.pop(address_of(timesteps), None)


class Threads:
    """The progress of each thread that calls a denoiser; `begin` makes it at a thread's first call."""

    def __init__(self, begin: Callable[[], Progress]) -> None:
        self._begin = begin
        self._progress: dict[int, Progress] = {}

    def here(self) -> Progress:
        """The progress of this thread."""
        here = threading.get_ident()
        if here not in self._progress:
            alive = {thread.ident for thread in threading.enumerate()}
            self._progress = {thread: each for thread, each in self._progress.items() if thread in alive}
            self._progress[here] = self._begin()
        return self._progress[here]

    def end_runs(self) -> None:
        for progress in self._progress.values():
            progress.end_run()
