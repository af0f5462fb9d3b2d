"""DeepCache on one U-Net: runs each call as a full or as a shallow step."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.attention import AttentionCalls, Listener, may_write
from DeepCache.engine.branches import SkipBranch, down_blocks, layer_lists, skip_branches, up_blocks
from DeepCache.engine.compilation import ISOLATED, Compilation, is_compiled, static_timestep
from DeepCache.engine.cut import Cut
from DeepCache.engine.error_growth import ErrorGrowth, relative_error
from DeepCache.engine.feature import StoredSlot
from DeepCache.engine.fingerprint import (
    guidance_scale,
    other_guidance,
    other_model,
    other_scheduler,
    refuse,
    warn_of_unknown_guidance,
)
from DeepCache.engine.guidance import (
    conditional_half,
    counts_parts,
    join_halves,
    latents,
    output_tensor,
    several_prompts,
    why_not_two_halves,
    with_tensor,
)
from DeepCache.engine.narrowing import ClassMark, Narrowing
from DeepCache.engine.offload import load_groups
from DeepCache.engine.prediction import PredictionForecast
from DeepCache.engine.skipped_call import SkippedCall
from DeepCache.engine.stats import TrajectoryRecord, TrajectoryStats
from DeepCache.engine.stiffness import stiffness
from DeepCache.engine.trajectory import Moment, Trajectory
from DeepCache.schedule import AdaptiveSchedule, Step

__all__ = ["UnetCache", "branch_of", "check_settings"]

_END_OF_RUN = "_reset_stateful_cache"
_FULL = Step(True)
_WHOLE, _OTHER_HALF, _HALF = None, 0, 1


@dataclass(frozen=True)
class _Call:
    """A U-Net call that has begun. Without a moment it is no step of the trajectory."""

    sample: torch.Tensor
    moment: Moment | None = None
    step: Step = _FULL


class UnetCache:
    """DeepCache on one U-Net.

    Args:
        unet: the U-Net.
        config: the settings.
        pipe: the pipeline that it belongs to, which has, as a rule, a `scheduler`.
        name: what the pipeline calls it.

    Raises:
        TypeError: the U-Net cannot be cut.
        ValueError: a branch is too deep for it, the plan is for another, or it cannot be compiled as asked for.
    """

    def __init__(self, unet: nn.Module, config: DeepCacheConfig, pipe: Any, name: str) -> None:
        self.unet = unet
        self._config = config
        self._pipe = pipe
        self._name = name
        self._trajectory = Trajectory()
        self._steps: tuple[Step, ...] = ()
        self._slots: dict[int, StoredSlot] = {}
        self._handles: list[RemovableHandle] = []
        self._tap_handles: list[RemovableHandle] = []
        self._last_slot = 0
        self._last_moment: Moment | None = None
        self._calls_a_step: int | None = None
        self._call: _Call | None = None
        self._listening: list[nn.Module] = []
        self._listener: Listener | None = None
        self._groups: list[Any] = []
        self._compilation = Compilation(unet, "none")
        self._compiled = False
        self._skipped_call = SkippedCall(self._answer)
        self._located: tuple[Any, Moment] | None = None
        self._growth: ErrorGrowth | None = None
        self._warned_of_guidance = False
        self._names = _names_of_sample_and_timestep(unet)
        self._cut()

    @property
    def attached(self) -> bool:
        return bool(self._handles)

    @property
    def pattern(self) -> str:
        """One character a step of the last trajectory."""
        return self._record.pattern

    @property
    def stats(self) -> TrajectoryStats:
        return self._record.stats(self.unet)

    def configure(self, config: DeepCacheConfig) -> None:
        """Changes the settings, which are fit for the U-Net. What is compiled is kept where it fits the new ones."""
        before, self._config = self._config, config
        self._warned_of_guidance = False
        self.end_run()
        if (config.branches, config.compile) != (before.branches, before.compile):
            self._cut_anew()

    def attach(self) -> None:
        """Puts the hooks on; without effect where they are."""
        if self.attached:
            return
        if self._structure != _structure(self.unet):
            self._cut()
        self._handles = [
            self.unet.register_forward_pre_hook(self._before_call, with_kwargs=True),
            self.unet.register_forward_hook(self._after_call, always_call=True),
        ]
        self._put_on()
        # Diffusers calls this on every component of a pipeline at the end of a run.
        self.unet.__dict__[_END_OF_RUN] = self.end_run

    def detach(self) -> None:
        """Takes the hooks off and leaves the U-Net as it was found; without effect where they are not on."""
        self.end_run()
        for handle in (*self._handles, *self._tap_handles):
            handle.remove()
        self._compilation.take_off()
        if self.attached:
            del self.unet.__dict__[_END_OF_RUN]
        self._handles, self._tap_handles = [], []

    def end_run(self) -> None:
        """Forgets the trajectory and all that its steps stored."""
        self._restore()
        self._call = self._located = self._last_moment = self._growth = None
        self._skipped_call.detach()
        self._slots.clear()
        for cut in self._cuts.values():
            cut.tap.take()
        self._attention_calls()
        self._trajectory.reset()

    def _cut(self) -> None:
        """Prepares the cuts of the configured branches and their compilation; nothing on the U-Net changes yet."""
        if self._config.compile != "none" and not ISOLATED:
            # Graphs that nothing matches any more would count towards the limit.
            torch.compiler.reset()
        self._compilation = Compilation(self.unet, self._config.compile)
        self._cuts = {number: Cut(self.unet, branch_of(self.unet, number)) for number in self._config.branches}
        self._tapped = ClassMark(dict.fromkeys(module for cut in self._cuts.values() for module in cut.narrowing.cut))
        self._attention = [module for module in self.unet.modules() if hasattr(module, "processor")]
        self._narrowing: Narrowing | None = None
        self._structure = _structure(self.unet)
        self._record = TrajectoryRecord(tuple(self._cuts))

    def _cut_anew(self) -> None:
        self._compilation.take_off()
        self._cut()
        if self.attached:
            self._put_on()

    def _put_on(self) -> None:
        self._compilation.put_on()
        for handle in self._tap_handles:
            handle.remove()
        self._tap_handles = [
            module.register_forward_hook(cut.tap) for cut in self._cuts.values() for module in cut.tapped
        ]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before_call(
        self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._call is not None:
            # The call before this one never came back (Ctrl-C inside it): nothing it left is to be trusted.
            self.end_run()
        sample, timestep = (_argument(args, kwargs, index, name) for index, name in enumerate(self._names))
        if sample.requires_grad and torch.is_grad_enabled():
            # A gradient that is wanted comes from the whole U-Net, and the call is no step of the trajectory.
            self._call = _Call(sample)
            return None
        moment = self._locate(timestep)
        if moment.starts:
            self._start_trajectory(moment, sample, args, kwargs)
        step, stored = self._begin_step(moment, sample)
        if step.skipped:
            # The pipeline left out the step before this one, after which the call would have been answered.
            step = _FULL
        self._record.note_call(moment.slot, step, sample, args, kwargs)
        self._call = _Call(sample, moment, step)
        if self._compiled:
            steady = static_timestep(timestep, unet, sample)
            args, kwargs = _with_argument(args, kwargs, 1, self._names[1], steady)
        for number, cut in self._cuts.items():
            # A shallow step at a deeper branch computes the deep features above it anew.
            cut.tap.open = step.full or number < step.branch
        if step.guidance_reuse:
            args, kwargs = conditional_half(args, kwargs, len(sample))
        if step.full or stored is None:
            self._listener = Listener(self._listening) if self._listening else None
            self._tapped.put_on()
            return args, kwargs
        cut = self._cuts[step.branch]
        meanwhile, others = None, []
        if stored.attention:
            others = [*down_blocks(unet), *up_blocks(unet)]
            meanwhile = partial(stored.attention.repeat, cut.deep_attention, kwargs.get("cross_attention_kwargs") or {})
            self._record.note_attention()
        self._groups = load_groups(cut.narrowing.blocks, others)
        self._narrowing = cut.narrowing
        feature = stored.features[step.branch].at(moment.step, step.forecast, _HALF if step.guidance_reuse else _WHOLE)
        cut.narrowing.apply(cut.buffered(feature) if self._compiled else feature, meanwhile)
        return args, cut.narrowing.narrow_kwargs(kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after_call(self, unet: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        call, self._call = self._call, None
        if call is None or output is None:
            # The U-Net raised.
            self.end_run()
            return None
        if call.moment is None:
            if self._last_moment is not None:
                self._prepare_next(self._last_moment)
            return None
        self._restore()
        if self._compiled:
            # A CUDA graph writes over its output at the next step, and a second slot or a scheduler may still want it.
            output = with_tensor(output, output_tensor(output).clone())
        if not (self._cuts or self._config.any_guidance_reuse or self._config.any_skipped):
            return output
        stored = self._stored(call, call.moment)
        output = self._forecast_guidance(call, call.moment, stored, output)
        if stored.prediction is not None:
            self._keep_prediction(call, call.moment, stored, output)
        forecasts_output = stored.guidance is not None or stored.prediction is not None
        limited = call.step.forecast == "limited"
        if call.step.full or limited or forecasts_output or len(self._cuts) > 1 or self._compiled:
            # On other steps nothing is added to what is kept.
            buffers = [buffer for cut in self._cuts.values() for buffer in cut.buffers.values()]
            kept = sum(slot.bytes for slot in self._slots.values())
            self._record.note_bytes(kept + sum(buffer.nbytes for buffer in buffers))
        if call.moment.ends or call.moment.mixed:
            self._slots.pop(call.moment.slot, None)
        self._prepare_next(call.moment)
        return output

    def _locate(self, timestep: Any) -> Moment:
        """Where a call stands. One that was not answered as a skipped step has been located already."""
        located, self._located = self._located, None
        if located is not None and located[0] is timestep:
            return located[1]
        return self._trajectory.locate(timestep, getattr(self._pipe, "scheduler", None))

    def _begin_step(self, moment: Moment, sample: torch.Tensor) -> tuple[Step, StoredSlot | None]:
        """What a call does, and what its slot keeps."""
        if moment.slot == 0 and moment is not self._last_moment:
            self._calls_a_step = None if moment.starts else self._last_slot + 1
            # A slot that the last step did not have is another one when it comes back.
            for slot in [slot for slot in self._slots if slot > self._last_slot]:
                del self._slots[slot]
        self._last_slot, self._last_moment = moment.slot, moment
        if self._growth is not None:
            self._growth.note_input(moment.step, sample)
        stored = self._slots.get(moment.slot)
        return self._step_at(moment, stored, sample), stored

    def _answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of a skipped step, without the U-Net; None where the call is another kind of step."""
        sample, timestep = (_argument(args, kwargs, index, name) for index, name in enumerate(self._names))
        if self._call is not None or (sample.requires_grad and torch.is_grad_enabled()):
            return None
        moment = self._trajectory.locate(timestep, getattr(self._pipe, "scheduler", None))
        self._located = (timestep, moment)
        if moment.starts:
            return None
        step, stored = self._begin_step(moment, sample)
        if not step.skipped or stored is None or stored.prediction is None:
            return None
        self._located = None
        self._record.note_call(moment.slot, step, sample, args, kwargs)
        prediction = stored.prediction.at(moment.step, latents(self.unet, sample), step.forecast)
        # A copy, since a scheduler may change what it gets, and while one value is kept every forecast is that value.
        output = with_tensor(stored.output, prediction.clone())
        if moment.ends:
            self._slots.pop(moment.slot, None)
        self._prepare_next(moment)
        return output

    def _prepare_next(self, moment: Moment) -> None:
        """Has the next call answered before the U-Net runs where it is a skipped step."""
        if not self._config.any_skipped:
            return
        # Nothing tells how many calls the first step has: each is taken for the last.
        over = self._calls_a_step is None or moment.slot + 1 >= self._calls_a_step
        number, stored = moment.step + over, self._slots.get(0 if over else moment.slot + 1)
        ends = moment.mixed or (moment.steps is not None and number >= moment.steps)
        if stored is not None and not ends and self._decided(number, moment.steps, stored).skipped:
            called = getattr(self._pipe, self._name, None)
            wrapped = getattr(called, "_orig_mod", None) is self.unet
            self._skipped_call.attach(cast(nn.Module, called) if wrapped else self.unet)
        else:
            self._skipped_call.detach()

    def _keep_prediction(self, call: _Call, moment: Moment, stored: StoredSlot, output: Any) -> None:
        """Keeps the prediction of a call, and its input, for skipped steps."""
        assert stored.prediction is not None
        sample = latents(self.unet, call.sample).detach().clone()
        prediction = output_tensor(output).detach().clone()
        if self._config.between == "skipped" and self._measures(call, moment):
            assert self._growth is not None
            # There is none to go on from where the batch has changed.
            known = stored.prediction.bytes > 0
            forecast = stored.prediction.at(moment.step, sample, self._config.forecast) if known else None
            self._growth.note_full(moment.step, None if forecast is None else relative_error(forecast, prediction))
        stored.prediction.add(moment.step, sample, prediction)
        stored.output = with_tensor(output, prediction)

    def _measures(self, call: _Call, moment: Moment) -> bool:
        """Whether the error that a forecast would have had at this step is measured."""
        return self._growth is not None and call.step.full and moment.slot == 0 and moment.step > 0

    def _restore(self) -> None:
        if self._narrowing is not None:
            self._narrowing.undo()
            self._narrowing = None
        self._tapped.take_off()
        for cut in self._cuts.values():
            cut.tap.open = False
        while self._groups:
            self._groups.pop().offload_()

    def _start_trajectory(
        self, moment: Moment, sample: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._slots.clear()
        # Somebody may have replaced a block or a layer since the last run.
        if self._structure != _structure(self.unet):
            self._cut_anew()
        if self._config.plan is not None and not self._config.force_plan:
            # The scheduler may be another since DeepCache was put on; that of the U-Net would have been noticed. Of
            # the guidance scale nothing is known before a run.
            plan, scale = self._config.plan, guidance_scale(self._pipe)
            refuse(other_scheduler(plan, getattr(self._pipe, "scheduler", None)) or other_guidance(plan, scale))
            self._warned_of_guidance = self._warned_of_guidance or warn_of_unknown_guidance(plan, scale)
        # A copied or unpickled U-Net has lost it.
        self._compilation.put_on()
        self._compiled = is_compiled(getattr(self._pipe, self._name))
        deep = {layer: None for cut in self._cuts.values() for layer in cut.deep_attention}
        self._listening = [layer for layer in deep if may_write(layer)]
        self._record = TrajectoryRecord(tuple(self._cuts))
        self._steps = ()
        schedule = self._config.effective_schedule
        self._growth = ErrorGrowth(schedule) if isinstance(schedule, AdaptiveSchedule) else None
        if self._config.any_skipped and any(may_write(layer) for layer in self._attention):
            raise ValueError(
                "a skipped step runs no layer, and the pipeline reads the attention maps of the U-Net; "
                "take between='shallow'"
            )
        if not moment.mixed:
            # What the schedule refuses is told before anything has run.
            self._scheduled(0, moment.steps)
        # A step of samples at several timesteps is full, whatever the schedule says.
        if self._config.any_guidance_reuse and not moment.mixed:
            reason = why_not_two_halves(self._pipe, self.unet, sample)
            if not reason and self._listening:
                reason = "the pipeline reads the attention maps of whole batches"
            if not reason and counts_parts(self._attention):
                reason = "an attention processor of the U-Net counts on the whole batch"
            if not reason and several_prompts(args, kwargs, sample):
                reason = "the batch of the U-Net has the same latents with several prompts in one half"
            if reason:
                raise ValueError(f"guidance_reuse runs half of a guided batch, and {reason}; turn it off")

    def _scheduled(self, number: int, steps: int | None) -> Step:
        """What the schedule says of a step."""
        if steps is None:
            return self._config.step(number, None)
        if len(self._steps) != steps:
            self._steps = self._config.steps(steps)
        return self._steps[number]

    def _step_at(self, moment: Moment, stored: StoredSlot | None, sample: torch.Tensor) -> Step:
        """What is done at a step: what the schedule says, as far as there is something to go on from."""
        if stored is None or moment.mixed or not stored.fits(sample):
            return _FULL
        left_out = range(stored.last_full + 1, moment.step)
        if any(self._scheduled(number, moment.steps).full for number in left_out):
            # A full step that the pipeline left out, or that had no such slot, is made up for.
            return _FULL
        step = self._decided(moment.step, moment.steps, stored)
        if step.guidance_reuse and stored.guidance is None:
            # Guidance was cut off in mid-run: there is no other half.
            return replace(step, guidance_reuse=False)
        return step

    def _decided(self, number: int, steps: int | None, stored: StoredSlot) -> Step:
        """What the schedule says of a step, or what was found out during the run."""
        step = self._scheduled(number, steps)
        if self._growth is None or step.full:
            return step
        if self._growth.is_due(number):
            return _FULL
        return self._config.step(number, steps, number - stored.last_full)

    def _stored(self, call: _Call, moment: Moment) -> StoredSlot:
        """What the slot keeps, with what the call has added to it."""
        stored, step = self._slots.get(moment.slot), call.step
        if stored is None or not stored.fits(call.sample):
            guided = self._config.any_guidance_reuse and not why_not_two_halves(self._pipe, self.unet, call.sample)
            scheduler = getattr(self._pipe, "scheduler", None)
            stiff = stiffness(guidance_scale(self._pipe), scheduler, moment.steps)
            order = self._config.highest_order
            stored = StoredSlot(call.sample, self._cuts, order, guided, stiff)
            if self._config.any_skipped:
                response = self._first_response() if self._config.any_response else None
                stored.prediction = PredictionForecast(order, response, stiff)
            self._slots[moment.slot] = stored
        for number, cut in self._cuts.items():
            tensor = cut.tap.take()
            if tensor is None and step.full:
                raise RuntimeError(
                    f"no module of {cut.name} ran on a full step, so there is no deep feature to keep; "
                    "this U-Net does not call its layers as modules"
                )
            if tensor is not None:
                feature = stored.features[number]
                if self._compiled:
                    # The deep feature outlives the step too.
                    tensor = tensor.clone()
                if step.guidance_reuse:
                    # What did not run is forecast.
                    tensor = torch.cat([feature.at(moment.step, step.forecast, _OTHER_HALF), tensor])
                if self._config.between != "skipped" and self._measures(call, moment):
                    assert self._growth is not None
                    forecast = feature.at(moment.step, self._config.feature_forecast) if feature.bytes else None
                    self._growth.note_full(moment.step, None if forecast is None else relative_error(forecast, tensor))
                feature.add(moment.step, tensor)
        if step.full:
            stored.last_full, stored.attention = moment.step, self._attention_calls()
        return stored

    def _first_response(self) -> float:
        """How a prediction answers to its input until that is measured: predicted noise changes as the input does."""
        config = getattr(getattr(self._pipe, "scheduler", None), "config", {})
        return 1.0 if config.get("prediction_type", "epsilon") == "epsilon" else 0.0

    def _forecast_guidance(self, call: _Call, moment: Moment, stored: StoredSlot, output: Any) -> Any:
        """The output, for both halves where only one ran."""
        if stored.guidance is not None:
            if call.step.guidance_reuse:
                difference = stored.guidance.at(moment.step, call.step.forecast)
                return with_tensor(output, join_halves(output_tensor(output), difference))
            unconditional, conditional = output_tensor(output).detach().chunk(2)
            stored.guidance.add(moment.step, unconditional - conditional)
        return output

    def _attention_calls(self) -> AttentionCalls:
        """What was heard during the call, and stops listening."""
        listener, self._listener = self._listener, None
        return listener.stop() if listener is not None else AttentionCalls([])


def branch_of(unet: nn.Module, number: int) -> SkipBranch:
    """The skip branch of that number.

    Raises:
        ValueError: the U-Net has none so deep.
        TypeError: the U-Net cannot be cut.
    """
    branches = skip_branches(unet)
    if number >= len(branches):
        raise ValueError(
            f"cache_branch_id must be from 0 to {len(branches) - 1} for this {type(unet).__name__}, got {number}"
        )
    return branches[number]


def check_settings(config: DeepCacheConfig, unet: nn.Module, pipe: Any) -> None:
    """Refuses settings that are not for this U-Net.

    Raises:
        ValueError: a branch is too deep, the plan is for another model or scheduler, or there is nothing in the U-Net
            that could be compiled as asked for.
        TypeError: the U-Net cannot be cut.
    """
    Compilation(unet, config.compile)
    if config.plan is not None and not config.force_plan:
        refuse(other_model(config.plan, unet) or other_scheduler(config.plan, getattr(pipe, "scheduler", None)))
    # A branch that is too deep is an error where nothing is cached too.
    for number in config.branches or (config.cache_branch_id,):
        branch_of(unet, number)


def _structure(unet: nn.Module) -> list[nn.Module | None]:
    modules: list[nn.Module | None] = [cast(nn.Module | None, unet.mid_block)]
    for block in (*down_blocks(unet), *up_blocks(unet)):
        modules.append(block)
        for layers in layer_lists(block).values():
            modules.extend(layers)
    return modules


def _names_of_sample_and_timestep(unet: nn.Module) -> tuple[str, str]:
    # Off the class: offloading replaces `forward` on the instance.
    names = list(inspect.signature(type(unet).forward).parameters)
    return names[1], names[2]


def _with_argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], index: int, name: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if index < len(args):
        return (*args[:index], value, *args[index + 1 :]), kwargs
    return args, kwargs | {name: value}


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], index: int, name: str) -> Any:
    if index < len(args):
        return args[index]
    if name not in kwargs:
        raise TypeError(f"the U-Net was called without its argument {name!r}")
    return kwargs[name]
