"""Bit-identical to the reference package 0.1.1, on every kind of U-Net that it accelerates."""

from __future__ import annotations

import copy
from functools import cache

import pytest
from torch import nn

from benchmarks.harness.denoising_run import ddim, identical, run_denoising
from benchmarks.harness.reference_package import reference_helper_class
from benchmarks.harness.tiny_unets import TINY_UNETS
from DeepCache import DeepCacheSDHelper
from DeepCache.engine.layouts import skip_branches

BRANCHES = [(name, branch) for name, kind in TINY_UNETS.items() for branch in range(kind.branches)]
ODD_SIZES = [(name, branch, size) for name, branch in BRANCHES for size in TINY_UNETS[name].sizes[1:]]


@cache
def _seeded(name: str) -> nn.Module:
    return TINY_UNETS[name].seeded()


def _unet(name: str) -> nn.Module:
    """A separate copy for each side: the reference package leaves wrappers behind."""
    return copy.deepcopy(_seeded(name))


def _assert_parity(name: str, interval: int, branch: int, size: int, steps: int = 7, start: int = 0) -> None:
    inputs = TINY_UNETS[name].make_inputs(size, 1)
    theirs = run_denoising(_unet(name), ddim(steps), reference_helper_class(), interval, branch, inputs, start)
    ours = run_denoising(_unet(name), ddim(steps), DeepCacheSDHelper, interval, branch, inputs, start)
    assert identical(ours, theirs)


@pytest.mark.parametrize("name", TINY_UNETS)
def test_the_branches_are_those_of_the_reference(name: str) -> None:
    assert len(skip_branches(_seeded(name))) == TINY_UNETS[name].branches


# benchmarks/parity.json has every interval up to 6 at every branch.
@pytest.mark.parametrize(
    ("name", "branch", "interval"),
    [
        (name, branch, interval)
        for name, branch in BRANCHES
        for interval in (1, 3, 5)
        if interval == 3 or branch == 0 or name == "stable-diffusion"
    ],
)
def test_every_branch_at_every_interval(name: str, branch: int, interval: int) -> None:
    # One step past the second full one.
    _assert_parity(name, interval, branch, TINY_UNETS[name].sizes[0], steps=interval + 2)


@pytest.mark.parametrize(("name", "branch", "size"), ODD_SIZES)
def test_every_branch_at_a_size_that_is_not_a_multiple(name: str, branch: int, size: int) -> None:
    _assert_parity(name, 2, branch, size, steps=4)


@pytest.mark.parametrize("name", ["stable-diffusion", "sdxl"])
def test_a_run_that_omits_the_first_timesteps(name: str) -> None:
    _assert_parity(name, 3, 2, TINY_UNETS[name].sizes[0], start=2)


@pytest.mark.parametrize("name", TINY_UNETS)
def test_caching_changes_the_result(name: str) -> None:
    """Otherwise the tests above would show nothing."""
    inputs = TINY_UNETS[name].make_inputs(TINY_UNETS[name].sizes[0], 1)
    plain = run_denoising(_unet(name), ddim(), None, 1, 0, inputs)
    cached = run_denoising(_unet(name), ddim(), DeepCacheSDHelper, 3, 0, inputs)
    assert not identical(cached, plain)
