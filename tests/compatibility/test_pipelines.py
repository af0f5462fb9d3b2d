"""DeepCache through the real `__call__` of every diffusers pipeline whose denoiser has skip connections."""

from __future__ import annotations

import warnings

import pytest
import torch

from DeepCache import DeepCacheSDHelper
from tests.compatibility.case import INTERVALS, BrokenCase, RefusedCase
from tests.compatibility.conftest import expect_warnings
from tests.compatibility.pipelines import BROKEN, REFUSED


def test_with_interval_one_is_bit_identical(subject):
    plain = subject.plain
    assert plain.isfinite().all()
    with subject.helper(1):
        assert torch.equal(subject.case.run(subject.pipe), plain)


@pytest.mark.parametrize("interval", INTERVALS)
def test_full_steps_are_as_scheduled(subject, interval):
    session = subject.session(interval)
    expected = {name: patterns[interval] for name, patterns in subject.case.calls.items()}
    assert session.patterns == expected
    assert session.first.isfinite().all()
    shallow = any("." in pattern for pattern in expected.values())
    assert torch.equal(session.first, subject.plain) == (not shallow)


def test_a_second_call_with_other_settings_starts_full(subject):
    with subject.helper(3):
        alone = subject.case.run_other(subject.pipe)
    session = subject.session(3)
    assert all(pattern.startswith("F") for pattern in session.second_patterns.values())
    assert torch.equal(session.second, alone)


def test_disable_restores(subject):
    session = subject.session(3)
    assert session.after == session.before
    assert torch.equal(subject.case.run(subject.pipe), subject.plain)


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_denoiser_of_another_structure_is_refused_with_the_reason(case: RefusedCase):
    with warnings.catch_warnings():
        expect_warnings(case)
        pipe = case.build()
        with pytest.raises(TypeError) as refusal:
            DeepCacheSDHelper(pipe).enable()
    assert case.reason in str(refusal.value)


@pytest.mark.parametrize("case", BROKEN, ids=str)
def test_broken_pipeline_fails_without_deepcache(case: BrokenCase):
    with warnings.catch_warnings():
        expect_warnings(case)
        pipe = case.build()
        with pytest.raises(Exception, match=case.error):
            case.run(pipe)
