"""torch.compile: one graph for full steps, one for shallow steps, and the output of DeepCache without it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache
from DeepCache.schedule import BranchSchedule, Step, StepSchedule, UniformSchedule
from tests.engine.backend import use_backend
from tests.engine.tiny_pipeline import generate, small_unet, tiny_pipeline
from tests.releases import COMPILES

pytestmark = COMPILES


def _pipeline():
    return tiny_pipeline(small_unet())


def _helper(pipe, branch=0):
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=3, cache_branch_id=branch)
    return helper


def _generate(pipe, seed=0):
    return generate(pipe, steps=4, seed=seed)


@pytest.fixture(scope="module")
def plain():
    return _generate(_pipeline())


@pytest.fixture(scope="module")
def cached():
    """The images of DeepCache uncompiled, by branch and seed."""

    def run(branch, seed):
        pipe = _pipeline()
        with _helper(pipe, branch):
            return _generate(pipe, seed)

    return {(branch, seed): run(branch, seed) for branch, seed in [(0, 0), (0, 1), (1, 0), (1, 1)]}


@pytest.fixture
def graphs():
    torch.compiler.reset()
    yield CompileCounter()
    torch.compiler.reset()


def _integration(note):
    return pytest.mark.integration("torch.compile", note)


def _wrap(pipe, graphs):
    pipe.unet = torch.compile(pipe.unet, backend=graphs, fullgraph=True)


def _in_place(pipe, graphs):
    pipe.unet.compile(backend=graphs, fullgraph=True)


@pytest.mark.parametrize("compile_first", [True, False], ids=["compiled first", "enabled first"])
@pytest.mark.parametrize(
    "compile_unet",
    [
        pytest.param(_wrap, marks=_integration("whole: `torch.compile(pipe.unet, fullgraph=True)`")),
        pytest.param(_in_place, marks=_integration("in place: `pipe.unet.compile(fullgraph=True)`")),
    ],
)
def test_two_graphs_and_none_more_for_another_prompt(compile_unet, compile_first, graphs, cached):
    pipe = _pipeline()
    helper = _helper(pipe)
    if compile_first:
        compile_unet(pipe, graphs)
    helper.enable()
    if not compile_first:
        compile_unet(pipe, graphs)

    assert torch.equal(_generate(pipe), cached[0, 0])
    assert graphs.frame_count == 2
    assert torch.equal(_generate(pipe, seed=1), cached[0, 1])
    assert graphs.frame_count == 2
    assert helper.stats.pattern == "F..F"
    assert 0.5 < helper.stats.mac_share < 1


@pytest.mark.integration("torch.compile", "before or after `enable()`")
def test_compiled_and_run_before_it_is_enabled(graphs, cached, plain):
    pipe = _pipeline()
    _wrap(pipe, graphs)
    assert torch.equal(_generate(pipe), plain)
    assert graphs.frame_count == 1

    _helper(pipe).enable()
    assert torch.equal(_generate(pipe), cached[0, 0])
    assert torch.equal(_generate(pipe, seed=1), cached[0, 1])
    assert graphs.frame_count == 1 + 2


@pytest.mark.integration("torch.compile", "another branch compiles again")
def test_another_branch_and_disable_while_compiled(graphs, cached, plain):
    pipe = _pipeline()
    helper = _helper(pipe)
    helper.enable()
    _wrap(pipe, graphs)
    assert torch.equal(_generate(pipe), cached[0, 0])
    helper.set_params(cache_interval=3, cache_branch_id=1)
    assert torch.equal(_generate(pipe), cached[1, 0])
    assert graphs.frame_count == 2 + 2
    helper.disable()
    assert torch.equal(_generate(pipe), plain)


@pytest.mark.integration("torch.compile", "block by block")
@pytest.mark.parametrize("branch", [0, 1])
def test_blocks_compiled_one_by_one(branch, graphs, cached, plain):
    """A shallow step at branch 1 runs a part of the first block."""
    pipe = _pipeline()
    unet = pipe.unet
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        block.compile(backend=graphs)
    assert torch.equal(_generate(pipe), plain)
    helper = _helper(pipe, branch)
    helper.enable()
    assert torch.equal(_generate(pipe), cached[branch, 0])
    built = graphs.frame_count
    assert torch.equal(_generate(pipe, seed=1), cached[branch, 1])
    assert graphs.frame_count == built


EACH = (
    Step(True),
    Step(False),
    Step(True, forecast="linear", guidance_reuse=True),
    Step(False, forecast="linear", guidance_reuse=True),
    Step(True),
    Step(False),
)


def _by_deepcache(pipe, graphs):
    """`compile="default"` of the config has done it."""


KINDS = {
    "linear": (DeepCacheConfig(2, forecast="linear"), 2),
    "quadratic": (DeepCacheConfig(2, forecast="quadratic"), 2),
    "limited": (DeepCacheConfig(2), 2),
    # Every shallow step runs half of the batch.
    "guidance reuse": (DeepCacheConfig(2, forecast="linear", guidance_reuse=True), 2),
    "two branches": (DeepCacheConfig(schedule=BranchSchedule(UniformSchedule(3), after=(0, 1))), 3),
    "two branches and a forecast": (
        DeepCacheConfig(schedule=BranchSchedule(UniformSchedule(3), after=(1, 0)), forecast="linear"),
        3,
    ),
    # Full and shallow steps of the whole batch and of half of it.
    "both of either kind": (DeepCacheConfig(schedule=StepSchedule(EACH)), 4),
    # Nothing runs at a skipped step.
    "skipped": (DeepCacheConfig(2, between="skipped", forecast="response"), 1),
    "alternating": (DeepCacheConfig(3, between="alternating", forecast="response"), 2),
    "adaptive": (DeepCacheConfig(3, skip_mode="adaptive", threshold=10.0, between="skipped"), 1),
}
SKIPPING = ("skipped", "alternating", "adaptive")
COMPILED = {"by torch.compile": _wrap, "in place": _in_place, "by DeepCache": _by_deepcache}


# Each kind one way, and those that skip steps every way.
@pytest.mark.parametrize(
    ("kind", "compiled"),
    [(kind, "by torch.compile") for kind in KINDS]
    + [("skipped", "in place"), ("skipped", "by DeepCache")]
    + [
        pytest.param(kind, other, marks=pytest.mark.slow)
        for kind in ("alternating", "adaptive")
        for other in ("in place", "by DeepCache")
    ],
)
def test_a_graph_for_each_kind_of_step_and_none_more_for_another_prompt(kind, compiled, graphs, monkeypatch):
    """Six steps, so that every kind of step comes with a forecast from one value, two and three."""
    config, built = KINDS[kind]
    expected = {}
    for seed in (0, 1):
        pipe = _pipeline()
        engine = apply_deepcache(pipe, config)
        expected[seed] = generate(pipe, seed=seed), engine.stats.pattern
    assert ("-" in engine.stats.pattern) == (kind in SKIPPING)
    if compiled == "by DeepCache":
        use_backend(monkeypatch, graphs)
        config = replace(config, compile="default")
    pipe = _pipeline()
    engine = apply_deepcache(pipe, config)
    COMPILED[compiled](pipe, graphs)
    for seed in (0, 1, 0):
        images, pattern = expected[seed]
        assert torch.equal(generate(pipe, seed=seed), images)
        assert (engine.stats.pattern, graphs.frame_count) == (pattern, built)
