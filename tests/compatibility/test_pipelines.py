"""DeepCache through the real `__call__` of every diffusers pipeline whose denoiser has skip connections."""

from __future__ import annotations

import warnings

import pytest
import torch

from DeepCache import DeepCacheSDHelper
from tests.compatibility.case import INTERVALS, BrokenCase, RefusedCase
from tests.compatibility.conftest import Subject, Witness, expect_warnings
from tests.compatibility.pipelines import BROKEN, REFUSED


def _helper(subject: Subject, interval: int) -> DeepCacheSDHelper:
    helper = DeepCacheSDHelper(subject.pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    return helper


def test_with_interval_one_no_bit_differs(subject):
    plain = subject.plain
    assert plain.isfinite().all()
    with _helper(subject, 1):
        assert torch.equal(subject.case.run(subject.pipe), plain)


@pytest.mark.parametrize("interval", INTERVALS)
def test_full_steps_fall_where_the_schedule_says(subject, interval):
    witnesses = {name: Witness(getattr(subject.pipe, name)) for name in subject.case.calls}
    try:
        with _helper(subject, interval):
            cached = subject.case.run(subject.pipe)
    finally:
        for witness in witnesses.values():
            witness.remove()
    expected = {name: patterns[interval] for name, patterns in subject.case.calls.items()}
    assert {name: witness.take() for name, witness in witnesses.items()} == expected
    assert cached.isfinite().all()
    shallow = any("." in pattern for pattern in expected.values())
    assert torch.equal(cached, subject.plain) == (not shallow)


def test_a_second_call_with_other_settings_starts_full(subject):
    with _helper(subject, 3):
        alone = subject.case.run_other(subject.pipe)
    with _helper(subject, 3):
        subject.case.run(subject.pipe)
        witnesses = [Witness(getattr(subject.pipe, name)) for name in subject.case.calls]
        after_another = subject.case.run_other(subject.pipe)
    for witness in witnesses:
        witness.remove()
        assert witness.take().startswith("F")
    assert torch.equal(after_another, alone)


def test_disable_restores(subject):
    plain = subject.plain
    before = {name: dict(vars(getattr(subject.pipe, name))) for name in subject.case.calls}
    helper = _helper(subject, 3)
    helper.enable()
    subject.case.run(subject.pipe)
    helper.disable()
    assert {name: dict(vars(getattr(subject.pipe, name))) for name in subject.case.calls} == before
    assert torch.equal(subject.case.run(subject.pipe), plain)


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_a_denoiser_of_another_structure_is_refused_with_the_reason(case: RefusedCase):
    with warnings.catch_warnings():
        expect_warnings(case)
        pipe = case.build()
        with pytest.raises(TypeError) as refusal:
            DeepCacheSDHelper(pipe).enable()
    assert case.reason in str(refusal.value)


@pytest.mark.parametrize("case", BROKEN, ids=str)
def test_a_pipeline_that_is_listed_as_broken_fails_without_deepcache(case: BrokenCase):
    with warnings.catch_warnings():
        expect_warnings(case)
        pipe = case.build()
        with pytest.raises(Exception, match=case.error):
            case.run(pipe)
