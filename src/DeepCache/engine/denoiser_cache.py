"""DeepCache on one denoiser: runs each call as a full, a shallow or a skipped step."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.arguments import CallArguments
from DeepCache.engine.call_guard import CallGuard
from DeepCache.engine.checks import check_run, refuse_another_thread
from DeepCache.engine.compilation import is_compiled
from DeepCache.engine.executor import Executor
from DeepCache.engine.fingerprint import guidance_scale, warn_of_unknown_guidance
from DeepCache.engine.guidance import conditional_half
from DeepCache.engine.planner import NOT_ANSWERED, Decision
from DeepCache.engine.run import Call, Run, SlotKey
from DeepCache.engine.stats import TrajectoryStats
from DeepCache.engine.trajectory import StepInfo, Trajectory
from DeepCache.engine.unets import component_of, scheduler_of
from DeepCache.schedule import Step

__all__ = ["DenoiserCache"]

_END_OF_RUN = "_reset_stateful_cache"


class DenoiserCache:
    """DeepCache on one denoiser.

    Args:
        denoiser: the module.
        config: the settings.
        pipe: the pipeline that it belongs to, which has, as a rule, a `scheduler`; or the denoiser itself.
        name: what the pipeline calls it.
        slot_key: names the slot of a call; by default its place among the calls of a step.

    Raises:
        TypeError: the denoiser cannot be cut.
        ValueError: a branch is too deep for it, or it cannot be compiled as asked for.
    """

    def __init__(
        self, denoiser: nn.Module, config: DeepCacheConfig, pipe: Any, name: str, slot_key: SlotKey | None = None
    ) -> None:
        self.denoiser = denoiser
        self.slot_key = slot_key
        self._config, self._pipe, self._name = config, pipe, name
        self._arguments = CallArguments(denoiser)
        self._guard = CallGuard(self._answer, self._interrupted)
        self._handles: list[RemovableHandle] = []
        self._trajectory = Trajectory()
        self._warned_of_guidance = False
        # The call in flight, where it is a step; one that the guard has begun and the hook has not seen yet; the thread
        # of the call in flight.
        self._call: Call | None = None
        self._begun: Call | None = None
        self._calling: int | None = None
        self._run: Run
        self._prepare()

    @property
    def attached(self) -> bool:
        return bool(self._handles)

    @property
    def pattern(self) -> str:
        """One character a step of the last run."""
        return self._run.record.pattern

    @property
    def stats(self) -> TrajectoryStats:
        return self._run.record.stats(self.denoiser)

    def configure(self, config: DeepCacheConfig) -> None:
        """Changes the settings, which are fit for the denoiser. What is compiled is kept where it fits the new ones."""
        before, self._config = self._config, config
        self._warned_of_guidance = False
        self.end_run()
        if (config.branches, config.compile) != (before.branches, before.compile):
            self._prepare_again()

    def attach(self) -> None:
        """Registers the hooks; without effect where they are. Where that fails, nothing is left of it."""
        if self.attached:
            return
        if self._executor.out_of_date:
            self._prepare()
        try:
            self._handles.append(self.denoiser.register_forward_pre_hook(self._before_call, with_kwargs=True))
            self._handles.append(self.denoiser.register_forward_hook(self._after_call, always_call=True))
            self._attach_to_calls()
            # Diffusers calls this on every component of a pipeline at the end of a run.
            self.denoiser.__dict__[_END_OF_RUN] = self._reset
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Removes the hooks and leaves the denoiser as it was found; without effect where they are not on."""
        self.end_run()
        for handle in self._handles:
            handle.remove()
        self._detach_from_calls()
        self.denoiser.__dict__.pop(_END_OF_RUN, None)
        self._handles = []

    def end_run(self) -> None:
        """Changes the denoiser back and forgets the run and all that its steps stored."""
        self._executor.end()
        self._executor.take()
        self._executor.attention_calls()
        self._call = self._begun = self._calling = None
        self._run.forget()
        self._trajectory.reset()

    def _reset(self, *args: Any, **kwargs: Any) -> None:
        self.end_run()
        # A denoiser that has a method of this name has state of its own.
        own = getattr(type(self.denoiser), _END_OF_RUN, None)
        if own is not None:
            own(self.denoiser, *args, **kwargs)

    def _prepare(self) -> None:
        """Makes the cuts of the configured branches; nothing on the denoiser changes yet."""
        self._executor = Executor(self.denoiser, self._config.branches, self._config.compile)
        self._run = Run(self._config, self._executor)

    def _prepare_again(self) -> None:
        self._detach_from_calls()
        self._prepare()
        if self.attached:
            self._attach_to_calls()

    def _attach_to_calls(self) -> None:
        """Has calls of the denoiser compiled and guarded, in this order. A copied or unpickled one has lost both."""
        called = component_of(self._pipe, self._name)
        self._guard.detach()
        self._executor.attach()
        self._guard.attach(called if getattr(called, "_orig_mod", None) is self.denoiser else self.denoiser)

    def _detach_from_calls(self) -> None:
        self._guard.detach()
        self._executor.detach()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before_call(
        self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._calling is not None:
            refuse_another_thread(self._calling, self.denoiser)
            # The call before this one never came back: nothing it left is to be trusted.
            self.end_run()
        call, self._begun = self._begun or self._begin(args, kwargs), None
        if call is not None and call.decision.step.skipped:
            # No guard stands around this call: `torch.compile` is around the denoiser, where nothing tells of it.
            call = call._replace(decision=Decision(Step(True), NOT_ANSWERED))
        self._call, self._calling = call, threading.get_ident()
        if call is None:
            return None
        run, step = self._run, call.decision.step
        run.record.note_call(call.info, call.decision, call.sample, args, kwargs)
        if run.compiled:
            args, kwargs = self._arguments.with_static_timestep(args, kwargs, denoiser, call.sample)
        if step.guidance_reuse:
            args, kwargs = conditional_half(args, kwargs, call.sample, self._executor.layout.prompt_half)
        if step.full or call.slot is None:
            self._executor.full(run.listening)
            return args, kwargs
        attention = call.slot.attention
        if attention:
            run.record.note_attention()
        feature = call.slot.feature(call.info.step, step)
        self._executor.shallow(step.branch, feature, run.compiled, attention, kwargs.get("cross_attention_kwargs"))
        return self._executor.cuts[step.branch].narrow(args, kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after_call(self, denoiser: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if output is None:
            # The denoiser raised.
            self._interrupted()
            return None
        self._executor.end()
        call, self._call, self._calling = self._call, None, None
        return None if call is None else self._run.keep(denoiser, call, output)

    def _interrupted(self) -> None:
        """Ends the run, unless the call that broke off is another thread's than the one in flight."""
        if self._calling in (None, threading.get_ident()):
            self.end_run()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of a skipped step, without the denoiser; None where the call is another kind of step."""
        if self._calling is not None or self._arguments.wants_gradient(args, kwargs):
            return None
        call = self._begin(args, kwargs)
        if call is None or not call.decision.step.skipped:
            self._begun = call
            return None
        self._run.record.note_call(call.info, call.decision, call.sample, args, kwargs)
        return self._run.answer(self.denoiser, call)

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """Where a call stands and what it does; None where it is no step of the run."""
        sample = self._arguments.sample(args, kwargs)
        if self._arguments.wants_gradient(args, kwargs):
            # It comes from the whole denoiser.
            self._run.record.note_gradient(sample, args, kwargs)
            return None
        scheduler = scheduler_of(self._pipe, self._name)
        info = self._trajectory.locate(self._arguments.timestep(args, kwargs), scheduler)
        if info.starts:
            self._start_run(info, scheduler, sample, args, kwargs)
        run = self._run
        if info.slot == 0:
            run.store.begin_step()
        key = run.store.key(None if self.slot_key is None else self.slot_key(args, kwargs))
        slot = run.store.find(key)
        return Call(sample, info, key, slot, run.planner.decide(info, slot, sample))

    def _start_run(
        self, info: StepInfo, scheduler: Any, sample: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        config = self._config
        # Somebody may have replaced a block or a layer since the last run.
        if self._executor.out_of_date:
            self._prepare_again()
        self._attach_to_calls()
        self._executor.begin_run()
        compiled = is_compiled(component_of(self._pipe, self._name))
        self._run = Run(config, self._executor, self._pipe, scheduler, compiled)
        # The first step is never skipped.
        self._guard.answers = self._run.any_skipped
        if config.plan is not None and not config.force_plan and not self._warned_of_guidance:
            self._warned_of_guidance = warn_of_unknown_guidance(config.plan, guidance_scale(self._pipe))
        call = () if info.mixed else (sample, args, kwargs)
        check_run(config, self._executor, self.denoiser, self._pipe, scheduler, call)
        if not info.mixed:
            # A schedule that does not fit raises before anything has run.
            self._run.planner.scheduled(0, info.steps)
