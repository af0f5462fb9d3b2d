"""One run of a ComfyUI sampler: decides which evaluations of the model are full, and keeps the cached features."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from DeepCache.comfyui.block_numbers import BlockNumbers
from DeepCache.comfyui.executors import Executors, turn
from DeepCache.comfyui.model_call import Begun, ChunkKeys, ModelCall, positive_of_two
from DeepCache.comfyui.sampler import Sampler
from DeepCache.config import DeepCacheConfig
from DeepCache.engine.executor import Executor
from DeepCache.engine.forecast import Forecast, PredictionForecast
from DeepCache.engine.planner import Decision, Planner
from DeepCache.engine.slot import Slot
from DeepCache.engine.stats import RunRecord, TrajectoryStats
from DeepCache.engine.torch_versions import not_compiled
from DeepCache.engine.trajectory import StepInfo
from DeepCache.schedule import Step

__all__ = ["SamplerRun"]

OUTSIDE = "outside start_percent to end_percent"
RUNS_LAYERS = "a patch runs the layers of the middle block itself"
COUNTS_BLOCKS = "a patch counts the output blocks from the middle block on"


class SamplerRun:
    """One run of a sampler with DeepCache.

    Args:
        config: the settings.
        sampler: properties of the sampler.
        executors: the executors of the node, shared by its runs.
    """

    def __init__(self, config: DeepCacheConfig, sampler: Sampler, executors: Executors) -> None:
        self._config, self._sampler, self._executors = config, sampler, executors
        self._planner = Planner(config)
        self._slots: dict[Hashable, Slot] = {}
        self._guidance: dict[tuple[Hashable, ...], Forecast] = {}
        self._models: set[nn.Module] = set()
        self._transformers: dict[int, int] = {}
        self._evaluation, self._first, self._calls = -1, -1, 0
        self._keys, self._allowed = ChunkKeys(), False
        self._record = RunRecord(config.branches)
        self._model: weakref.ref[nn.Module] | None = None
        self._used: set[Hashable] = set()
        # The calls of one evaluation may come from several threads, each with a copy of the model.
        self._turn = threading.Lock()

    def begin_evaluation(self, sigma: torch.Tensor) -> None:
        """Starts an evaluation of the model, which may consist of several calls; `sigma` is its noise level, for each
        sample."""
        self._slots = {key: slot for key, slot in self._slots.items() if key in self._used}
        self._guidance = {keys: kept for keys, kept in self._guidance.items() if self._used.issuperset(keys)}
        self._used = set()
        self._evaluation += 1
        self._calls, self._keys, self._allowed = 0, ChunkKeys(), self._sampler.allows(sigma)
        if self._allowed and self._first < 0:
            self._first = self._evaluation

    @not_compiled
    def begin(self, model: nn.Module, call: ModelCall) -> Begun:
        """Decides which step a call of the diffusion model runs, and patches the model for it. The caller holds the
        `turn` of the model until `Begun.undo`."""
        with self._turn:
            return self._begin(model, call)

    def _begin(self, model: nn.Module, call: ModelCall) -> Begun:
        call = call._replace(keys=self._keys.of(call.options, call.sample))
        self._used.update(call.keys)
        decision = self._decide(model, call)
        self._note(model, decision, call)
        number, self._calls = self._calls, self._calls + 1
        step = decision.step
        if not self._allowed:
            return Begun(step, call, call)
        if step.skipped:
            return Begun(step, call, call, output=self._skipped(model, step, call))
        executor = self._executor(model)
        if step.full:
            executor.full()
            numbers = BlockNumbers()
            given = call._replace(options=numbers.patched(call.options))
            return Begun(step, call, given, executor, number=number, numbers=numbers)
        index = positive_of_two(call) if step.guidance_reuse else None
        return self._begin_shallow(model, executor, step, call, call if index is None else call.of_chunk(index))

    @not_compiled
    def keep(self, model: nn.Module, begun: Begun, output: torch.Tensor) -> torch.Tensor:
        """Caches the features and predictions of a call, and returns its output for all chunks."""
        with self._turn:
            return output if begun.executor is None else self._keep(model, begun, output)

    def _keep(self, model: Any, begun: Begun, output: torch.Tensor) -> torch.Tensor:
        step, call = begun.step, begun.call
        if step.full:
            assert begun.numbers is not None
            self._transformers |= begun.numbers.transformers
            for key, chunk in call.split(call.sample):
                if key not in self._slots or not self._slots[key].fits(chunk):
                    self._slots[key] = self._new_slot(chunk)
                self._slots[key].last_full = self._number
        self._keep_features(model, begun)
        if step.guidance_reuse:
            negative = output + self._guidance[tuple(call.keys)].at(self._number, step.forecast)
            output = torch.cat([negative, output] if positive_of_two(call) else [output, negative])
        else:
            self._keep_guidance(call, output)
        self._keep_predictions(model, begun, output)
        kept = [each.bytes for each in self._slots.values()] + [each.bytes for each in self._guidance.values()]
        self._record.note_bytes(sum(kept))
        return output

    def end(self) -> None:
        """Detaches all hooks from the model and clears the cache."""
        while self._models:
            model = self._models.pop()
            with turn(model):
                self._executors.end(model, self._config.branches)
        self._planner = Planner(self._config)
        self._slots.clear()
        self._guidance.clear()

    def stats(self) -> TrajectoryStats:
        """Statistics of the run; multiply-accumulates are counted only while the model is alive."""
        model = None if self._model is None else self._model()
        return self._record.stats(nn.Identity() if model is None else model)

    @property
    def _number(self) -> int:
        """Index of the evaluation since DeepCache started."""
        return max(self._evaluation - self._first, 0)

    def _decide(self, model: Any, call: ModelCall) -> Decision:
        if not self._allowed:
            return Decision(Step(True), OUTSIDE)
        info = StepInfo(self._number, self._calls, False, self._sampler.steps)
        found = [self._planner.decide(info, self._slots.get(key), chunk) for key, chunk in call.split(call.sample)]
        # If one chunk has nothing cached, the whole call is full.
        decision = next((each for each in found if each.step.full), found[0])
        if decision.step.full:
            return decision
        if decision.step.shallow and BlockNumbers.count_blocks(call.options):
            return Decision(Step(True), COUNTS_BLOCKS)
        deepest = decision.step.shallow and decision.step.branch == len(model.output_blocks) - 1
        if deepest and BlockNumbers.run_layers(call.options):
            return Decision(Step(True), RUNS_LAYERS)
        scheduled = self._planner.scheduled(info.step, info.steps)
        guidance = self._guidance.get(tuple(call.keys))
        if guidance is None or self._sampler.splits_batches or not scheduled.guidance_reuse:
            return decision
        # The two may have been in separate calls at their last full step.
        current = guidance.latest >= max(self._slots[key].last_full for key in call.keys)
        return Decision(scheduled) if current else decision

    def _note(self, model: nn.Module, decision: Decision, call: ModelCall) -> None:
        if self._model is None:
            self._model = weakref.ref(model)
        info = StepInfo(self._evaluation, self._calls, False)
        kwargs = {**call.others, "transformer_options": {"optimized_attention_override": _counted_attention}}
        self._record.note_call(info, decision, (call.sample,), kwargs)

    def _executor(self, model: nn.Module) -> Executor:
        if model not in self._models:
            self._models.add(model)
            self._executors.begin(model, self._config.branches)
        return self._executors.of(model, self._config.branches)

    def _begin_shallow(self, model: Any, executor: Executor, step: Step, call: ModelCall, part: ModelCall) -> Begun:
        """A shallow step of `call`, of which the model runs `part`."""
        feature = torch.cat(
            [self._slots[key].features[step.branch].at(self._number, step.forecast) for key in part.keys]
        )
        narrowed = executor.patches[step.branch].narrow((), {"control": part.control})[1]
        left_out = len(model.output_blocks) - 1 - step.branch
        options = BlockNumbers(left_out, self._transformers).patched(part.options)
        executor.shallow(step.branch, feature)
        return Begun(step, call, part._replace(control=narrowed["control"], options=options), executor)

    def _skipped(self, model: nn.Module, step: Step, call: ModelCall) -> torch.Tensor:
        chunks = call.split(_latents(model, call.sample))
        return torch.cat([self._slots[key].skipped(self._number, step, chunk) for key, chunk in chunks])

    def _new_slot(self, chunk: torch.Tensor) -> Slot:
        order, stiff = self._config.highest_order, self._sampler.stiffness
        slot = Slot(chunk, self._config.branches, order, guided=False, stiffness=stiff)
        if self._config.any_skipped:
            response = self._sampler.response if self._config.any_response else None
            slot.prediction = PredictionForecast(order, response, stiff)
        return slot

    def _keep_features(self, model: Any, begun: Begun) -> None:
        assert begun.executor is not None
        call, taken = begun.given, begun.executor.take()
        if begun.numbers is not None and begun.numbers.features:
            last = len(model.output_blocks) - 1
            taken = {branch: begun.numbers.features[last - branch] for branch in taken}
        for branch, feature in taken.items():
            if self._config.between != "skipped":
                forecast = self._slots[call.keys[0]].features[branch]
                expected = forecast.at(self._number, self._config.feature_forecast) if forecast.bytes else None
                self._measure(begun, expected, next(call.split(feature))[1])
            for key, chunk in call.split(feature):
                self._slots[key].features[branch].add(self._number, chunk)

    def _keep_guidance(self, call: ModelCall, output: torch.Tensor) -> None:
        """Caches the negative prediction minus the positive one, if a call has both."""
        index = positive_of_two(call) if self._config.any_guidance_reuse else None
        if index is not None:
            halves = output.chunk(2)
            forecast = self._guidance.setdefault(
                tuple(call.keys), Forecast(self._config.highest_order, self._sampler.stiffness)
            )
            forecast.add(self._number, halves[1 - index] - halves[index])

    def _keep_predictions(self, model: nn.Module, begun: Begun, output: torch.Tensor) -> None:
        if not self._config.any_skipped:
            return
        call = begun.call
        samples = call.split(_latents(model, call.sample).clone())
        for (key, sample), (_, prediction) in zip(samples, call.split(output.clone()), strict=True):
            slot = self._slots[key]
            assert slot.prediction is not None
            if key == call.keys[0] and self._config.between == "skipped":
                rule = self._config.forecast
                expected = slot.prediction.at(self._number, sample, rule) if slot.prediction.bytes else None
                self._measure(begun, expected, prediction)
            slot.prediction.add(self._number, sample, prediction)
            slot.output = prediction

    def _measure(self, begun: Begun, expected: torch.Tensor | None, found: torch.Tensor) -> None:
        """Reports the error of a forecast to an adaptive schedule."""
        info = StepInfo(self._number, begun.number, False)
        if self._planner.measures(info, begun.step):
            comparable = expected is not None and expected.shape == found.shape
            self._planner.note_error(info, expected if comparable else None, found)


def _latents(model: Any, sample: torch.Tensor) -> torch.Tensor:
    """The channels that are denoised, without those of a mask or an input image."""
    latents: torch.Tensor = sample[:, : model.out_channels]
    return latents


def _counted_attention(
    attention: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """An `optimized_attention_override` for counting on the meta device, where ComfyUI's attention asks for the free
    memory of the device."""
    if not kwargs.get("skip_reshape"):
        q, k, v = (each.view(*each.shape[:2], heads, -1).transpose(1, 2) for each in (q, k, v))
    output = scaled_dot_product_attention(q, k, v)
    return output if kwargs.get("skip_output_reshape") else output.transpose(1, 2).flatten(2)
