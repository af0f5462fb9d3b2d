"""A slice of the random sequences, and whether they find what is wrong."""

from __future__ import annotations

import pytest
import torch

from DeepCache.engine.arguments import CallArguments
from DeepCache.engine.slot import Slot
from tests.fuzz.sequence import Sequence, shrunk
from tests.fuzz.session import Finding


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("first", range(0, 100, 50))
def test_nothing_is_found(first):
    shallow = 0
    for seed in range(first, first + 50):
        try:
            shallow += Sequence.random(seed).play().shallow
        except Exception as error:
            raise AssertionError(f"found by {shrunk(Sequence.random(seed))}") from error
    # Else there is nothing to be wrong.
    assert shallow > 500


def _slots_by_order(monkeypatch):
    monkeypatch.setattr(CallArguments, "conditioning", lambda self, args, kwargs: None)
    monkeypatch.setattr("DeepCache.engine.store.Purpose.continues", property(lambda self: True))


def _doubts_that_nobody_has(monkeypatch):
    monkeypatch.setattr("DeepCache.engine.trajectory.is_denoising", lambda values: True)


def _a_feature_that_is_changed(monkeypatch):
    feature = Slot.feature
    monkeypatch.setattr(Slot, "feature", lambda self, number, step: feature(self, number, step) + 1e-3)


def _gradients_that_are_not_noticed(monkeypatch):
    monkeypatch.setattr("DeepCache.engine.denoiser_cache.why_differentiated", lambda denoiser, args, kwargs: "")


def _everything_full(monkeypatch):
    monkeypatch.setattr("DeepCache.engine.store.Purpose.continues", property(lambda self: False))


def _a_hook_that_is_left(monkeypatch):
    monkeypatch.setattr("DeepCache.engine.executor.Executor.detach", lambda self: self.end())


@pytest.mark.parametrize(
    "fault",
    [
        _slots_by_order,
        _doubts_that_nobody_has,
        _a_feature_that_is_changed,
        _gradients_that_are_not_noticed,
        _everything_full,
        _a_hook_that_is_left,
    ],
)
def test_a_fault_is_found(fault, monkeypatch):
    fault(monkeypatch)
    for seed in range(100):
        try:
            Sequence.random(seed).play()
        except Finding:
            return
    pytest.fail("100 sequences did not find it")
