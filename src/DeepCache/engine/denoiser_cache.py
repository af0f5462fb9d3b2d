"""DeepCache on one denoiser: runs each call as a full, a shallow or a skipped step."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.arguments import CallArguments, SlotName, why_differentiated
from DeepCache.engine.call_guard import CallGuard
from DeepCache.engine.checks import check_run, refuse_another_thread, refuse_within_a_call
from DeepCache.engine.compilation import is_compiled
from DeepCache.engine.executor import Executor
from DeepCache.engine.fingerprint import guidance_scale, warn_of_unknown_guidance
from DeepCache.engine.layouts.layout import Args, Kwargs
from DeepCache.engine.planner import NOT_ANSWERED, Decision
from DeepCache.engine.progress import Progress, Threads
from DeepCache.engine.run import Call, Run
from DeepCache.engine.stats import TrajectoryStats
from DeepCache.engine.torch_versions import ALWAYS_CALLED, not_compiled
from DeepCache.engine.trajectory import StepInfo
from DeepCache.engine.unets import component_of, scheduler_of
from DeepCache.schedule import Step

_END_OF_RUN = "_reset_stateful_cache"


class DenoiserCache:
    """DeepCache on one denoiser."""

    def __init__(
        self, denoiser: nn.Module, config: DeepCacheConfig, pipe: Any, name: str, slot_key: SlotName | None = None
    ) -> None:
        self.denoiser, self.slot_key = denoiser, slot_key
        self._config, self._pipe, self._name = config, pipe, name
        self._arguments = CallArguments(denoiser)
        self._guard, self._threads = CallGuard(self._answer, self._interrupted), Threads(self._new_progress)
        self._handles: list[RemovableHandle] = []
        self._warned_of_guidance = False
        self._calling: int | None = None  # the thread whose call is in flight
        self._prepare()
        self._latest = Run(config, self._executor)

    @property
    def attached(self) -> bool:
        return bool(self._handles)

    @property
    def pattern(self) -> str:
        return self._latest.record.pattern

    @property
    def stats(self) -> TrajectoryStats:
        return self._latest.record.stats(self.denoiser)

    @property
    def places(self) -> tuple[int | None, int]:
        return self._threads.here().places

    def configure(self, config: DeepCacheConfig) -> None:
        """Changes the settings, which have been checked. Compiled code is kept if it fits the new ones."""
        with self.between_calls():
            self._forget()
        before, self._config, self._warned_of_guidance = self._config, config, False
        if (config.branches, config.compile) != (before.branches, before.compile):
            self._prepare_again()

    def attach(self) -> None:
        """Registers the hooks. Idempotent; a failure leaves no hook behind."""
        if self.attached:
            return
        if self._executor.out_of_date:
            self._prepare()
        try:
            self._handles.append(self.denoiser.register_forward_pre_hook(self._before_call, with_kwargs=True))
            self._handles.append(self.denoiser.register_forward_hook(self._after_call, **ALWAYS_CALLED))
            self._attach_to_calls()
            # Diffusers calls this on every component of a pipeline at the end of a run.
            self.denoiser.__dict__[_END_OF_RUN] = self._reset
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Removes the hooks and restores the denoiser. Idempotent."""
        with self.between_calls():
            self._forget()
            for handle in self._handles:
                handle.remove()
            self._detach_from_calls()
            self.denoiser.__dict__.pop(_END_OF_RUN, None)
            self._handles = []

    def end_run(self) -> None:
        """Forgets the runs of all threads and all that their steps stored."""
        with self.between_calls():
            self._forget()
            self._threads.here().finish()

    @contextmanager
    def between_calls(self) -> Iterator[None]:
        """Keeps all threads from calling the denoiser; raises within a call."""
        with self._guard.turn:
            refuse_within_a_call(self._calling, self.denoiser)
            yield

    def _forget(self) -> None:
        self._executor.reset()
        self._calling = None
        self._threads.end_runs()

    def _reset(self, *args: Any, **kwargs: Any) -> None:
        self._threads.here().finish()
        # A denoiser with a method of this name has its own state.
        own = getattr(type(self.denoiser), _END_OF_RUN, None)
        if own is not None:
            own(self.denoiser, *args, **kwargs)

    def _prepare(self) -> None:
        """Makes the patches of the configured branches; nothing on the denoiser changes yet."""
        self._executor = Executor(self.denoiser, self._config.branches, self._config.compile)

    def _prepare_again(self) -> None:
        self._detach_from_calls()
        self._prepare()
        if self.attached:
            self._attach_to_calls()

    def _attach_to_calls(self) -> None:
        """Compiles and then guards the calls of the denoiser. A copied or unpickled one has lost both."""
        called = component_of(self._pipe, self._name)
        self._guard.detach()
        self._executor.attach()
        self._guard.attach(called if getattr(called, "_orig_mod", None) is self.denoiser else self.denoiser)

    def _detach_from_calls(self) -> None:
        self._guard.detach()
        self._executor.detach()

    def _new_progress(self) -> Progress:
        return Progress(Run(self._config, self._executor), self.denoiser, self._pipe, self._name)

    @not_compiled
    def _before_call(self, denoiser: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        if self._calling is not None:
            refuse_another_thread(self._calling, self.denoiser)
            # The call before this one did not return, so its state cannot be trusted.
            self._forget()
        progress = self._threads.here()
        call, progress.begun = progress.begun or self._begin(progress, args, kwargs), None
        if call is not None and call.decision.step.skipped:
            # No guard is around this call: `torch.compile` is around the denoiser without its knowledge.
            call = call._replace(decision=Decision(Step(True), NOT_ANSWERED))
        progress.call, self._calling = call, threading.get_ident()
        if call is None:
            return None
        progress.run.record.note_call(call.info, call.decision, args, kwargs)
        if progress.run.compiled:
            args, kwargs = self._arguments.with_static_timestep(args, kwargs, denoiser, call.sample)
        return progress.run.begin(call, args, kwargs)

    @not_compiled
    def _after_call(self, denoiser: nn.Module, args: Args, output: Any) -> Any:
        if output is None:  # The denoiser raised.
            return self._interrupted()
        self._executor.end()
        progress = self._threads.here()
        call, progress.call, self._calling = progress.call, None, None
        return None if call is None else progress.run.keep(denoiser, call, output)

    def _interrupted(self) -> None:
        """Ends the run, unless another thread's call is in flight."""
        if self._calling in (None, threading.get_ident()):
            self._executor.reset()
            self._calling = None
            self._threads.here().end_run()

    @not_compiled
    def _answer(self, args: Args, kwargs: Kwargs) -> Any:
        """The output of a skipped step, without the denoiser; None for another kind of step."""
        if self._calling is not None or why_differentiated(self.denoiser, args, kwargs):
            return None
        progress = self._threads.here()
        call = self._begin(progress, args, kwargs)
        if call is None or not call.decision.step.skipped:
            progress.begun = call
            return None
        progress.run.record.note_call(call.info, call.decision, args, kwargs)
        return progress.run.answer(self.denoiser, call)

    def _begin(self, progress: Progress, args: Args, kwargs: Kwargs) -> Call | None:
        """Locates a call and decides what it does; None if it is not a step of the run."""
        reason = why_differentiated(self.denoiser, args, kwargs)
        if reason:
            if not progress.running:
                self._latest = progress.begin(Run(self._config, self._executor))
            progress.run.record.note_differentiated(reason, args, kwargs)
            return None
        sample = self._arguments.sample(args, kwargs)
        timestep = self._arguments.timestep(args, kwargs)
        meant = self._arguments.name_or_conditioning(args, kwargs, self.slot_key)
        purpose = progress.run.store.purpose(*meant)
        info = progress.locate(timestep, purpose)
        if info.starts:
            self._start_run(progress, info, (sample, args, kwargs))
            purpose = progress.run.store.purpose(*meant)
        elif info.slot:
            purpose = progress.run.store.purpose(*meant, within_step=True)
        return progress.run.call(sample, info, purpose)

    def _start_run(self, progress: Progress, info: StepInfo, call: Sequence[Any]) -> None:
        config, pipe = self._config, progress.pipe
        scheduler = scheduler_of(pipe, self._name)
        # A block or a layer may have been replaced since the last run.
        if self._executor.out_of_date:
            self._prepare_again()
        self._attach_to_calls()
        self._executor.begin_run()
        compiled = is_compiled(component_of(self._pipe, self._name))
        run = Run(config, self._executor, pipe, scheduler, compiled, progress.in_pipeline, progress.partial)
        self._latest = progress.begin(run)
        self._guard.answers = config.any_skipped
        if config.plan is not None and not config.force_plan and not self._warned_of_guidance:
            self._warned_of_guidance = warn_of_unknown_guidance(config.plan, guidance_scale(pipe))
        check_run(config, self._executor, self.denoiser, pipe, scheduler, () if info.belongs_to_no_run else call)
        if not info.belongs_to_no_run:
            # A schedule that does not fit raises before anything has run.
            run.planner.scheduled(0, info.steps)
