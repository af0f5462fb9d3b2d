"""One denoising run of a denoiser: its planner, its store and its record."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.attention import may_write
from DeepCache.engine.executor import Executor
from DeepCache.engine.fingerprint import guidance_scale
from DeepCache.engine.forecast import PredictionForecast, stiffness
from DeepCache.engine.guidance import conditional_half, latents, output_tensor, why_not_two_halves, with_tensor
from DeepCache.engine.layouts.layout import Args, Kwargs
from DeepCache.engine.planner import NEW_SLOT, WHICH_CALL, Decision, Planner
from DeepCache.engine.slot import Slot
from DeepCache.engine.stats import RunRecord
from DeepCache.engine.store import Purpose, SlotKey, Store
from DeepCache.engine.trajectory import StepInfo


class Call(NamedTuple):
    """A call of the denoiser that is a step of the run; its slot is None if nothing is stored for it."""

    sample: torch.Tensor
    info: StepInfo
    key: SlotKey
    slot: Slot | None
    decision: Decision


class Run:
    """One denoising run."""

    def __init__(
        self,
        config: DeepCacheConfig,
        executor: Executor,
        pipe: Any = None,
        scheduler: Any = None,
        compiled: bool = False,
        ordered: bool = False,
        partial: bool = False,
    ) -> None:
        self._config, self._executor, self._pipe, self._scheduler = config, executor, pipe, scheduler
        self.compiled, self._ordered, self._partial = compiled, ordered, partial
        self.forget()
        self.record = RunRecord(tuple(executor.patches))
        self._listening = [layer for layer in executor.deep_attention if may_write(layer)]
        self._any_skipped, self._any_guidance_reuse = config.any_skipped, config.any_guidance_reuse
        self._keeps = bool(executor.patches) or self._any_guidance_reuse or self._any_skipped

    def forget(self) -> None:
        """Drops all that is stored; the record stays."""
        self.planner, self.store = Planner(self._config), Store(self._ordered, self._partial)

    def call(self, sample: torch.Tensor, info: StepInfo, purpose: Purpose) -> Call:
        """Decides what a call does, and with which slot."""
        if info.slot == 0:
            self.store.begin_step()
        key = self.store.key(purpose)
        slot = self.store.find(key) if purpose.continues and not info.doubt else None
        missing = NEW_SLOT if purpose.continues else WHICH_CALL
        return Call(sample, info, key, slot, self.planner.decide(info, slot, sample, missing))

    def begin(self, call: Call, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Changes the denoiser for a call, and returns the arguments for the part that runs."""
        step, executor = call.decision.step, self._executor
        if step.guidance_reuse:
            args, kwargs = conditional_half(args, kwargs, call.sample, executor.layout.prompt_half)
        if step.full or call.slot is None:
            executor.full(self._listening)
            return args, kwargs
        attention = call.slot.attention
        if attention:
            self.record.note_attention()
        feature = call.slot.feature(call.info.step, step)
        executor.shallow(step.branch, feature, self.compiled, attention, kwargs.get("cross_attention_kwargs"))
        return executor.patches[step.branch].narrow(args, kwargs)

    def keep(self, denoiser: nn.Module, call: Call, output: Any) -> Any:
        """Stores what a call has computed, and returns its output for the whole batch."""
        info, step = call.info, call.decision.step
        if self.compiled:
            # A CUDA graph overwrites its output at the next step; a second slot or a scheduler may still need it.
            output = with_tensor(output, output_tensor(output).clone())
        if not self._keeps:
            return output
        slot = call.slot
        if slot is None or not slot.fits(call.sample):
            slot = self._new_slot(denoiser, call.sample, info)
            self.store.keep(call.key, slot)
        renewed = self._keep_features(call, slot)
        output = slot.guided(info.step, step, output)
        if slot.prediction is not None:
            self._keep_prediction(denoiser, call, slot, slot.prediction, output)
        changed = slot.guidance is not None or slot.prediction is not None or step.forecast == "limited"
        if renewed or changed or self.compiled:
            buffers = self._executor.buffer_bytes if self.compiled else 0
            self.record.note_bytes(self.store.bytes + buffers)
        if info.ends:
            self.store.drop(call.key)
        return output

    def answer(self, denoiser: nn.Module, call: Call) -> Any:
        """The output of a skipped step."""
        assert call.slot is not None
        output = call.slot.skipped(call.info.step, call.decision.step, latents(denoiser, call.sample))
        if call.info.ends:
            self.store.drop(call.key)
        return output

    def _keep_features(self, call: Call, slot: Slot) -> bool:
        """Stores the deep features that a call has renewed, and returns whether there are any."""
        number, step, patches = call.info.step, call.decision.step, self._executor.patches
        taken = self._executor.take()
        if step.full and len(taken) < len(patches):
            missing = next(patch.branch.name for branch, patch in patches.items() if branch not in taken)
            raise RuntimeError(
                f"no module of {missing} ran on a full step, so there is no deep feature to keep; "
                "this U-Net does not call its layers as modules"
            )
        for branch, computed in taken.items():
            forecast = slot.features[branch]
            # The deep feature of a CUDA graph has to outlive the step too.
            tensor = slot.whole_feature(number, step, branch, computed.clone() if self.compiled else computed)
            if self._config.between != "skipped" and self.planner.measures(call.info, step):
                expected = forecast.at(number, self._config.feature_forecast) if forecast.bytes else None
                self.planner.note_error(call.info, expected, tensor)
            forecast.add(number, tensor)
        if step.full:
            slot.last_full, slot.attention = number, self._executor.attention_calls()
        return bool(taken)

    def _keep_prediction(
        self, denoiser: nn.Module, call: Call, slot: Slot, forecast: PredictionForecast, output: Any
    ) -> None:
        """Stores the prediction of a call, and its input, for skipped steps."""
        number = call.info.step
        if isinstance(output, tuple) and sum(isinstance(each, torch.Tensor) for each in output) > 1:
            raise ValueError(
                f"a skipped step forecasts one prediction, and this {type(denoiser).__name__} returns {len(output)}. "
                "Use between='shallow'"
            )
        sample = latents(denoiser, call.sample).detach().clone()
        prediction = output_tensor(output).detach().clone()
        if self._config.between == "skipped" and self.planner.measures(call.info, call.decision.step):
            # A new slot, as after a change of the batch, has no forecast.
            expected = forecast.at(number, sample, self._config.forecast) if forecast.bytes else None
            self.planner.note_error(call.info, expected, prediction)
        forecast.add(number, sample, prediction)
        slot.output = with_tensor(output, prediction)

    def _new_slot(self, denoiser: nn.Module, sample: torch.Tensor, info: StepInfo) -> Slot:
        config = self._config
        guided = self._any_guidance_reuse and not why_not_two_halves(self._pipe, denoiser, sample)
        stiff = stiffness(guidance_scale(self._pipe), self._scheduler, info.steps)
        half = self._executor.layout.prompt_half
        slot = Slot(sample, self._executor.patches, config.highest_order, guided, stiff, half)
        if self._any_skipped:
            # Until the response is measured: predicted noise changes as the input does.
            kind = getattr(self._scheduler, "config", {}).get("prediction_type", "epsilon")
            response = float(kind == "epsilon") if config.any_response else None
            slot.prediction = PredictionForecast(config.highest_order, response, stiff)
        return slot
