"""One denoising run of a denoiser: what is decided, kept and noted of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from DeepCache.config import DeepCacheConfig
from DeepCache.engine.attention import may_write
from DeepCache.engine.executor import Executor
from DeepCache.engine.fingerprint import guidance_scale
from DeepCache.engine.guidance import conditional_half, latents, output_tensor, why_not_two_halves, with_tensor
from DeepCache.engine.planner import NEW_SLOT, WHICH_CALL, Decision, Planner
from DeepCache.engine.prediction import PredictionForecast
from DeepCache.engine.slot import Slot
from DeepCache.engine.stats import RunRecord
from DeepCache.engine.stiffness import stiffness
from DeepCache.engine.store import Purpose, SlotKey, Store
from DeepCache.engine.trajectory import StepInfo

__all__ = ["Call", "Run"]


class Call(NamedTuple):
    """A call of the denoiser that has begun, and is a step of the run.

    Args:
        sample: its sample.
        info: where it stands.
        key: the key of its slot.
        slot: what is kept for it; None where nothing is.
        decision: what it does.
    """

    sample: torch.Tensor
    info: StepInfo
    key: SlotKey
    slot: Slot | None
    decision: Decision


class Run:
    """One denoising run.

    Args:
        config: the settings.
        executor: the cuts of the denoiser.
        pipe: its pipeline.
        scheduler: the pipeline's scheduler for it.
        compiled: whether `torch.compile` is on the denoiser.
        ordered: see `Store`.
        partial: see `Store`.

    Attributes:
        planner: decides what each call does.
        store: what is kept.
        record: what is noted.
        any_skipped: whether any step may run no layer.
        any_guidance_reuse: whether any step runs half of a guided batch.
        listening: deep attention layers whose calls may be made again on shallow steps.
    """

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
        self.record = RunRecord(tuple(executor.cuts))
        self.listening = [layer for layer in executor.deep_attention if may_write(layer)]
        self.any_skipped, self.any_guidance_reuse = config.any_skipped, config.any_guidance_reuse
        self._keeps = bool(executor.cuts) or self.any_guidance_reuse or self.any_skipped

    def forget(self) -> None:
        """Drops all that is kept; what was noted stays."""
        self.planner, self.store = Planner(self._config), Store(self._ordered, self._partial)

    def call(self, sample: torch.Tensor, info: StepInfo, purpose: Purpose) -> Call:
        """What a call does, and with what of that which is kept.

        Args:
            sample: its sample.
            info: where it stands.
            purpose: what it is for.
        """
        if info.slot == 0:
            self.store.begin_step()
        key = self.store.key(purpose)
        slot = self.store.find(key) if purpose.continues and not info.doubt else None
        missing = NEW_SLOT if purpose.continues else WHICH_CALL
        return Call(sample, info, key, slot, self.planner.decide(info, slot, sample, missing))

    def begin(
        self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Changes the denoiser for a call, and returns the arguments for what it runs."""
        step, executor = call.decision.step, self._executor
        if step.guidance_reuse:
            args, kwargs = conditional_half(args, kwargs, call.sample, executor.layout.prompt_half)
        if step.full or call.slot is None:
            executor.full(self.listening)
            return args, kwargs
        attention = call.slot.attention
        if attention:
            self.record.note_attention()
        feature = call.slot.feature(call.info.step, step)
        executor.shallow(step.branch, feature, self.compiled, attention, kwargs.get("cross_attention_kwargs"))
        return executor.cuts[step.branch].narrow(args, kwargs)

    def keep(self, denoiser: nn.Module, call: Call, output: Any) -> Any:
        """Keeps what a call has computed, and returns its output for the whole batch."""
        info, step = call.info, call.decision.step
        if self.compiled:
            # A CUDA graph writes over its output at the next step, and a second slot or a scheduler may still want it.
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
            self._keep_prediction(denoiser, call, slot, output)
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
        """Keeps the deep features that a call has renewed, and says whether there are any."""
        number, step = call.info.step, call.decision.step
        taken = self._executor.take()
        if step.full and len(taken) < len(self._executor.cuts):
            missing = next(cut.name for branch, cut in self._executor.cuts.items() if branch not in taken)
            raise RuntimeError(
                f"no module of {missing} ran on a full step, so there is no deep feature to keep; "
                "this U-Net does not call its layers as modules"
            )
        for branch, computed in taken.items():
            forecast = slot.features[branch]
            # Of a CUDA graph the deep feature outlives the step too.
            tensor = slot.whole_feature(number, step, branch, computed.clone() if self.compiled else computed)
            if self._config.between != "skipped" and self.planner.measures(call.info, step):
                expected = forecast.at(number, self._config.feature_forecast) if forecast.bytes else None
                self.planner.note_error(call.info, expected, tensor)
            forecast.add(number, tensor)
        if step.full:
            slot.last_full, slot.attention = number, self._executor.attention_calls()
        return bool(taken)

    def _keep_prediction(self, denoiser: nn.Module, call: Call, slot: Slot, output: Any) -> None:
        """Keeps the prediction of a call, and its input, for skipped steps."""
        assert slot.prediction is not None
        forecast, number = slot.prediction, call.info.step
        if isinstance(output, tuple) and sum(isinstance(each, torch.Tensor) for each in output) > 1:
            raise ValueError(
                f"a skipped step forecasts one prediction, and this {type(denoiser).__name__} returns {len(output)}; "
                "take between='shallow'"
            )
        sample = latents(denoiser, call.sample).detach().clone()
        prediction = output_tensor(output).detach().clone()
        if self._config.between == "skipped" and self.planner.measures(call.info, call.decision.step):
            # There is none to go on from where the batch has changed.
            expected = forecast.at(number, sample, self._config.forecast) if forecast.bytes else None
            self.planner.note_error(call.info, expected, prediction)
        forecast.add(number, sample, prediction)
        slot.output = with_tensor(output, prediction)

    def _new_slot(self, denoiser: nn.Module, sample: torch.Tensor, info: StepInfo) -> Slot:
        config = self._config
        guided = self.any_guidance_reuse and not why_not_two_halves(self._pipe, denoiser, sample)
        stiff = stiffness(guidance_scale(self._pipe), self._scheduler, info.steps)
        half = self._executor.layout.prompt_half
        slot = Slot(sample, self._executor.cuts, config.highest_order, guided, stiff, half)
        if self.any_skipped:
            response = self._first_response() if config.any_response else None
            slot.prediction = PredictionForecast(config.highest_order, response, stiff)
        return slot

    def _first_response(self) -> float:
        """How a prediction answers to its input until that is measured: predicted noise changes as the input does."""
        settings = getattr(self._scheduler, "config", {})
        return 1.0 if settings.get("prediction_type", "epsilon") == "epsilon" else 0.0
