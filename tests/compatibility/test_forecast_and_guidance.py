"""Forecasts and guidance reuse through the real `__call__` of every diffusers pipeline that works.

A pipeline runs twice. The first run has guidance reuse. In the second one every step runs the whole batch, and what the
denoiser predicts is noted and then replaced by what the first run returned, so that both see the same inputs to the end
and every call can be compared. Where guidance reuse is refused, the second run goes its own way.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import pytest
import torch

from DeepCache import DeepCacheSDHelper
from tests.compatibility.case import PipelineCase
from tests.compatibility.conftest import OF_SEVERAL_KINDS, Subject, Witness, expect_warnings
from tests.compatibility.guidance import NOT_HALVED
from tests.compatibility.pipelines import CASES

pytestmark = pytest.mark.usefixtures("nothing_is_counted")

INTERVAL = 2
# The half of the batch that has the prompt comes first.
PROMPT_FIRST = ("StableCascade", "Wuerstchen")
# Kernels differ by the size of the batch.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.03}


@dataclass(frozen=True)
class Run:
    """A run of a pipeline.

    Attributes:
        result: what it returned.
        patterns: the calls of each denoiser, `F` for one that ran all of it.
        predictions: what each of them predicted.
        halved_steps: how many steps of the last trajectory ran half of the batch.
    """

    result: torch.Tensor
    patterns: dict[str, str]
    predictions: dict[str, list[torch.Tensor]]
    halved_steps: int


def _run(case: PipelineCase, pipe: Any, replayed: Run | None = None, **settings: Any) -> Run:
    """A run with these settings, in which the denoisers return what they did in another one."""
    predictions: dict[str, list[torch.Tensor]] = {name: [] for name in case.calls}

    def note(name: str, module: Any, args: Any, output: Any) -> None:
        prediction = output if isinstance(output, torch.Tensor) else output[0]
        noted = predictions[name]
        noted.append(prediction.detach().clone())
        if replayed is not None:
            prediction.copy_(replayed.predictions[name][len(noted) - 1])

    helper = DeepCacheSDHelper(pipe)
    helper.set_params(**{"cache_interval": INTERVAL} | settings)
    with helper:
        witnesses = {name: Witness(getattr(pipe, name)) for name in case.calls}
        # After the hooks of DeepCache.
        hooks = [getattr(pipe, name).register_forward_hook(partial(note, name)) for name in case.calls]
        try:
            result = case.run(pipe)
        finally:
            for handle in (*witnesses.values(), *hooks):
                handle.remove()
        patterns = {name: witness.take() for name, witness in witnesses.items()}
        return Run(result, patterns, predictions, helper.stats.halved_steps)


class Runs:
    """The two runs of a case."""

    def __init__(self, subject: Subject) -> None:
        self.case = subject.case
        self.reason = NOT_HALVED.get(str(subject.case))
        self._subject = subject

    @cached_property
    def halved(self) -> Run:
        """With guidance reuse."""
        return _run(self.case, self._subject.pipe, forecast="linear", guidance_reuse=True)

    @cached_property
    def whole(self) -> Run:
        """Without, on what the other one made."""
        return _run(self.case, self._subject.pipe, None if self.reason else self.halved, forecast="linear")


@pytest.fixture(scope="module")
def runs(subject: Subject) -> Runs:
    return Runs(subject)


def test_forecast_does_not_change_the_steps(runs):
    expected = {name: patterns[INTERVAL] for name, patterns in runs.case.calls.items()}
    assert runs.whole.patterns == expected
    assert runs.whole.result.isfinite().all()
    assert all(each.isfinite().all() for made in runs.whole.predictions.values() for each in made)


def test_guidance_reuse_runs_the_same_half_or_is_refused(runs):
    if runs.reason is not None:
        # The other run first: one that is refused on its way may leave a pipeline in any state.
        assert runs.whole.halved_steps == 0
        with pytest.raises(ValueError, match=r"^guidance_reuse runs half of a guided batch, and ") as refusal:
            assert runs.halved
        assert runs.reason.message in str(refusal.value)
        return
    assert runs.halved.patterns == runs.whole.patterns
    prompt = 0 if runs.case.pipeline.startswith(PROMPT_FIRST) else 1
    for name, pattern in runs.halved.patterns.items():
        made, expected = runs.halved.predictions[name], runs.whole.predictions[name]
        for step, prediction, whole in zip(pattern, made, expected, strict=True):
            if step == "F":
                assert torch.equal(prediction, whole)
            else:
                tolerance = TOLERANCES[whole.dtype] * max(1, whole.abs().max().item())
                ran, expected = prediction.chunk(2)[prompt], whole.chunk(2)[prompt]
                torch.testing.assert_close(ran, expected, rtol=0, atol=tolerance)
        _check_what_is_rebuilt(pattern, made, prompt)
        assert bool(runs.halved.halved_steps) == ("." in pattern)


def _check_what_is_rebuilt(pattern: str, made: list[torch.Tensor], prompt: int) -> None:
    """The other half of the first shallow step is as far from the one that ran as it was at the step before."""
    calls_a_step = len(pattern) - len(pattern.lstrip("F"))
    for call in range(calls_a_step, min(2 * calls_a_step, len(pattern))):
        if pattern[call] == ".":
            before, now = made[call - calls_a_step].chunk(2), made[call].chunk(2)
            assert torch.equal(now[1 - prompt], now[prompt] + (before[1 - prompt] - before[prompt]))


@pytest.mark.parametrize("case", [case for case in CASES if str(case) in OF_SEVERAL_KINDS], ids=str)
class TestOfSeveralKinds:
    @pytest.fixture(autouse=True)
    def _warnings_of_the_case_too(self, case):
        with warnings.catch_warnings():
            expect_warnings(case)
            yield

    def test_runs_are_independent(self, case):
        pipe = case.build()
        helper = DeepCacheSDHelper(pipe)
        helper.set_params(INTERVAL, forecast="linear", guidance_reuse=str(case) not in NOT_HALVED)
        with helper:
            first, second = case.run(pipe), case.run(pipe)
        assert torch.equal(first, second)

    def test_with_interval_one_is_bit_identical(self, case):
        pipe = case.build()
        every_step = _run(case, pipe, cache_interval=1, forecast="quadratic", guidance_reuse=True)
        assert set(every_step.patterns["unet"]) == {"F"}
        assert every_step.halved_steps == 0
        assert torch.equal(every_step.result, case.run(pipe))


def test_batch_of_four_parts_is_refused():
    """No prompt, a prompt, and two edits, all of the same latents."""
    (case,) = [case for case in CASES if case.pipeline == "SemanticStableDiffusionPipeline"]
    pipe = case.build()
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(INTERVAL, guidance_reuse=True)
    with (
        helper,
        pytest.raises(ValueError, match=r"guidance_reuse .* with several prompts in one half"),
    ):
        pipe("a red circle", editing_prompt=["a blue square", "a green cross"], num_inference_steps=2)


def test_every_refused_pipeline_is_a_case():
    assert set(NOT_HALVED) <= {str(case) for case in CASES}
    assert len({str(case) for case in CASES}) == len(CASES)
