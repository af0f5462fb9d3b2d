"""A sample of the random sequences, and whether they find faults."""

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
    # Otherwise nothing was tested.
    assert shallow > 500


def _slots_by_order(monkeypatch):
    monkeypatch.setattr(CallArguments, "name_or_conditioning", lambda self, args, kwargs, name: (None, None))
    monkeypatch.setattr("DeepCache.engine.store.Purpose.continues", property(lambda self: True))


def _no_doubts(monkeypatch):
    monkeypatch.setattr("DeepCache.engine.trajectory.is_denoising", lambda values: True)


def _a_changed_feature(monkeypatch):
    feature = Slot.feature
    monkeypatch.setattr(Slot, "feature", lambda self, number, step: feature(self, number, step) + 1e-3)


def _unnoticed_gradients(monkeypatch):
    monkeypatch.setattr("DeepCache.engine.denoiser_cache.why_differentiated", lambda denoiser, args, kwargs: "")


def _everything_full(monkeypatch):
    monkeypatch.setattr("DeepCache.engine.store.Purpose.continues", property(lambda self: False))


def _a_leftover_hook(monkeypatch):
    monkeypatch.setattr("DeepCache.engine.executor.Executor.detach", lambda self: self.end())


@pytest.mark.parametrize(
    "fault",
    [
        _slots_by_order,
        _no_doubts,
        _a_changed_feature,
        _unnoticed_gradients,
        _everything_full,
        _a_leftover_hook,
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
