from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from DeepCache import DeepCacheSDHelper
from tests.compatibility.case import INTERVALS, PipelineCase
from tests.compatibility.pipelines import CASES

# Of several kinds of U-Nets, one of them called several times a step.
OF_SEVERAL_KINDS = (
    "AnimateDiffPipeline",
    "AudioLDM2Pipeline",
    "DDIMPipeline",
    "StableDiffusionControlNetXSPipeline",
    "StableDiffusionGLIGENTextImagePipeline",
    "StableDiffusionXLPipeline",
    "StableVideoDiffusionPipeline",
)


class Witness:
    """Which calls of a denoiser ran its deepest layer, seen by hooks that know nothing of DeepCache."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._calls: list[str] = []
        self._handles = [
            denoiser.register_forward_pre_hook(lambda *_: self._calls.append("."), prepend=True),
            _deepest(denoiser).register_forward_hook(self._deepest_ran),
        ]

    def take(self) -> str:
        """One character a call since the last `take`: `F` if the deepest block ran, else `.`."""
        pattern = "".join(self._calls)
        self._calls.clear()
        return pattern

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _deepest_ran(self, *_: object) -> None:
        self._calls[-1] = "F"


def _deepest(denoiser: Any) -> nn.Module:
    """A layer of a denoiser below all its skip connections, by the names that diffusers gives it."""
    parts = dict(denoiser.named_children())
    if "transformer" in parts:
        # UniDiffuser.
        return denoiser.transformer.transformer_mid_block
    if "blocks" in parts:
        # HunyuanDiT.
        return denoiser.blocks[len(denoiser.blocks) // 2]
    if "mid_block" in parts:
        return denoiser.mid_block
    first = denoiser.up_blocks[0]
    # Stable Cascade and Würstchen call the layers of a block and never the block.
    return first[0] if isinstance(first, nn.ModuleList) else first


class Session:
    """Two runs of a pipeline between `enable` and `disable`, the second with other settings.

    Attributes:
        first, second: what they returned.
        patterns, second_patterns: the calls of each denoiser in them.
        before, after: the attributes of each denoiser before `enable` and after `disable`.
    """

    def __init__(self, case: PipelineCase, pipe: Any, helper: DeepCacheSDHelper, again: bool) -> None:
        denoisers = {name: getattr(pipe, name) for name in case.calls}
        self.before = {name: dict(vars(denoiser)) for name, denoiser in denoisers.items()}
        witnesses = {name: Witness(denoiser) for name, denoiser in denoisers.items()}
        try:
            with helper:
                self.first = case.run(pipe)
                self.patterns = {name: witness.take() for name, witness in witnesses.items()}
                self.second = case.run_other(pipe) if again else None
                self.second_patterns = {name: witness.take() for name, witness in witnesses.items()}
        finally:
            for witness in witnesses.values():
                witness.remove()
        self.after = {name: dict(vars(denoiser)) for name, denoiser in denoisers.items()}


class Subject:
    """The pipeline of a case, made when first asked for and used by all its tests."""

    def __init__(self, case: PipelineCase) -> None:
        self.case = case
        self._sessions: dict[int, Session] = {}

    @cached_property
    def pipe(self) -> Any:
        if not hasattr(diffusers, self.case.pipeline):
            pytest.skip(f"diffusers {diffusers.__version__} has no {self.case.pipeline}")
        return self.case.build()

    @cached_property
    def plain(self) -> torch.Tensor:
        """What the pipeline gives without DeepCache."""
        return self.case.run(self.pipe)

    def helper(self, interval: int) -> DeepCacheSDHelper:
        helper = DeepCacheSDHelper(self.pipe)
        helper.set_params(cache_interval=interval, cache_branch_id=0)
        return helper

    def session(self, interval: int) -> Session:
        """With DeepCache at this interval; at the longest, two runs after each other."""
        if interval not in self._sessions:
            again = interval == max(INTERVALS)
            self._sessions[interval] = Session(self.case, self.pipe, self.helper(interval), again)
        return self._sessions[interval]


def expect_warnings(case: Any) -> None:
    for message in case.warns:
        warnings.filterwarnings("ignore", message)


@pytest.fixture(scope="module", params=CASES, ids=str)
def subject(request: pytest.FixtureRequest) -> Subject:
    return Subject(request.param)


@pytest.fixture(autouse=True)
def _warnings_of_the_case(request: pytest.FixtureRequest) -> Iterator[None]:
    with warnings.catch_warnings():
        if "subject" in request.fixturenames:
            expect_warnings(request.getfixturevalue("subject").case)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Forecasts and guidance reuse through every pipeline take minutes: `make test` runs them on several kinds."""
    for item in items:
        if item.path.name == "test_forecast_and_guidance.py" and not any(
            kind in item.name for kind in OF_SEVERAL_KINDS
        ):
            item.add_marker(pytest.mark.slow)
