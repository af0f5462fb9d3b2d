"""The DeepCache node in ComfyUI's own engine: set `COMFYUI_PATH` to a checkout."""

from __future__ import annotations

import gc
import os
import weakref
from functools import cache, partial
from typing import Any

import pytest
import torch

from benchmarks.comfyui_engine.nodes import pattern, report, with_deepcache
from DeepCache.engine.layouts import layout_of

if not os.environ.get("COMFYUI_PATH"):
    pytest.skip("COMFYUI_PATH names no checkout of ComfyUI", allow_module_level=True)

from benchmarks.comfyui_engine import engine
from benchmarks.comfyui_engine.conditions import (
    FURTHER_CONDITIONS,
    RANDOM_LAYERS,
    Unavailable,
    conditions,
    patch_by_number,
    patched,
    seeded_by_layer,
    with_lora,
)

pytestmark = pytest.mark.filterwarnings("default")

BRANCHES = {"SD15": 12, "SDXL": 9}
# Samplers with several evaluations per step and one in the last: their number of evaluations in 5 steps.
EVALUATIONS = {"heun": 9, "heunpp2": 12, "dpm_2": 9, "dpm_2_ancestral": 9}


@pytest.fixture(scope="module", params=BRANCHES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def patcher(kind):
    return engine.model(kind)


NAMES = list(conditions("SD15"))


@pytest.mark.usefixtures("nothing_is_counted")
@pytest.mark.parametrize("name", NAMES)
class TestConditions:
    def test_interval_one_is_bit_identical(self, kind, patcher, name):
        change, settings = conditions(kind)[name]
        plain = engine.sample(change(patcher), kind, steps=4, **settings)
        assert plain.isfinite().all()
        assert torch.equal(engine.sample(with_deepcache(change(patcher), interval=1), kind, steps=4, **settings), plain)

    def test_a_shallow_step_with_the_true_feature_is_exact(self, kind, patcher, name):
        change, settings = conditions(kind)[name]
        expected = engine.sample(change(patcher), kind, sampler=engine.repeat, steps=2, **settings)
        for branch in range(BRANCHES[kind]):
            changed = with_deepcache(change(patcher), branch=branch)
            assert torch.equal(engine.sample(changed, kind, sampler=engine.repeat, steps=2, **settings), expected)
            assert pattern(changed) == "F."


_model = cache(engine.model)


@pytest.fixture(scope="module", autouse=True)
def _models_of_this_module_alone():
    yield
    _model.cache_clear()


@pytest.fixture(params=FURTHER_CONDITIONS)
def condition(request):
    found = FURTHER_CONDITIONS[request.param]

    def change(patcher: Any) -> Any:
        try:
            return found.change(patcher)
        except Unavailable as error:
            pytest.skip(str(error))

    return found._replace(change=change)


@pytest.mark.usefixtures("nothing_is_counted")
class TestFurtherConditions:
    """Tests a few branches: the others run the same code."""

    def test_interval_one_is_bit_identical(self, condition):
        patcher, kind, settings = _model(condition.kind), condition.kind, condition.settings()
        plain = engine.sample(condition.change(patcher), kind, steps=4, **settings)
        assert plain.isfinite().all()
        changed = with_deepcache(condition.change(patcher), interval=1)
        assert torch.equal(engine.sample(changed, kind, steps=4, **settings), plain)
        if condition.shows:
            assert not torch.equal(engine.sample(patcher, kind, steps=4), plain)

    def test_a_shallow_step_with_the_true_feature_is_exact(self, condition, request):
        patcher, kind, settings = _model(condition.kind), condition.kind, condition.settings()
        if request.node.callspec.id in RANDOM_LAYERS:
            patcher = seeded_by_layer(patcher)
        expected = engine.sample(condition.change(patcher), kind, sampler=engine.repeat, steps=3, **settings)
        deepest = len(layout_of(patcher.model.diffusion_model).branches) - 1
        for branch in (0, deepest // 2, deepest):
            changed = with_deepcache(condition.change(patcher), branch=branch)
            assert torch.equal(engine.sample(changed, kind, sampler=engine.repeat, steps=3, **settings), expected)
            assert pattern(changed) == "F.."

    def test_images_are_independent(self, condition):
        patcher, kind, settings = _model(condition.kind), condition.kind, condition.settings()
        plain = engine.sample(condition.change(patcher), kind, steps=2, **settings)
        changed = with_deepcache(condition.change(patcher), interval=2, branch=4, forecast="linear")
        first = engine.sample(changed, kind, steps=3, **settings)
        assert pattern(changed) == "F.F"
        engine.sample(changed, kind, steps=2, seed=7, **settings)
        assert torch.equal(engine.sample(changed, kind, steps=3, **settings), first)
        assert torch.equal(engine.sample(condition.change(patcher), kind, steps=2, **settings), plain)
        assert not any(module._forward_hooks for module in patcher.model.diffusion_model.modules())


def test_low_memory_mode_loads_few_weights():
    patcher = engine.low_memory(_model("SD15"))
    engine.sample(with_deepcache(patcher), steps=1)
    assert patcher.model.model_lowvram


def test_model_unloaded_between_two_images():
    changed = with_deepcache(with_lora(_model("SD15")), interval=2, branch=4)
    first = engine.sample(changed, steps=3)
    for unload in (engine.unload, partial(changed.partially_unload, changed.offload_device, 10**6), changed.detach):
        unload()
        assert torch.equal(engine.sample(changed, steps=3), first)
        assert pattern(changed) == "F.F"


def test_unused_model_is_freed():
    changed = with_deepcache(engine.model("small"))
    engine.sample(changed, "small", steps=2)
    report(changed)
    unet = weakref.ref(changed.model.diffusion_model)
    engine.unload()
    del changed
    gc.collect()
    assert unet() is None


@pytest.mark.parametrize("sampler", engine.SAMPLERS)
def test_every_sampler(kind, patcher, sampler):
    if kind == "SDXL":
        pytest.skip("samplers do not know of the model")
    plain = engine.sample(patcher, steps=5, sampler=sampler, cfg=2.0)
    every = with_deepcache(patcher, interval=1)
    assert torch.equal(engine.sample(every, steps=5, sampler=sampler, cfg=2.0), plain)
    count = len(pattern(every))
    changed = with_deepcache(patcher, interval=2, forecast="linear")
    assert engine.sample(changed, steps=5, sampler=sampler, cfg=2.0).isfinite().all()
    # dpm_adaptive chooses its number of evaluations by the prediction.
    found = pattern(changed)
    assert found == ("F." * len(found))[: len(found)]
    assert count == EVALUATIONS.get(sampler, count)


def test_partial_run(patcher, kind):
    """Image to image, and inpainting."""
    latent, mask = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)), torch.zeros(1, 16, 16)
    mask[..., 8:] = 1.0
    for settings in ({"denoise": 0.6}, {"mask": mask}):
        plain = engine.sample(patcher, kind, latent=latent, steps=5, **settings)
        assert torch.equal(
            engine.sample(with_deepcache(patcher, interval=1), kind, latent=latent, steps=5, **settings), plain
        )
        changed = with_deepcache(patcher, interval=2)
        engine.sample(changed, kind, latent=latent, steps=5, **settings)
        assert pattern(changed) == "F.F.F"


def test_guidance_reuse(patcher, kind):
    changed = with_deepcache(patcher, guidance_reuse=True, interval=2)
    expected = engine.sample(patcher, kind, sampler=engine.repeat, steps=2)
    found = engine.sample(changed, kind, sampler=engine.repeat, steps=2)
    assert "(1 with guidance reuse)" in report(changed)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_start_and_end_percent(patcher, kind):
    changed = with_deepcache(patcher, start_percent=0.3, end_percent=0.8)
    engine.sample(changed, kind)
    assert pattern(changed) == "FFFF..F.FF"


def test_macs_are_counted(patcher, kind):
    changed = with_deepcache(patcher)
    engine.sample(changed, kind, steps=6)
    assert "not counted" not in report(changed)


@pytest.mark.parametrize("name", ["SD 2.x", "KOALA", "SVD", "a LoRA with little memory"])
def test_macs_of_other_models_are_counted(name):
    condition = FURTHER_CONDITIONS[name]
    changed = with_deepcache(condition.change(_model(condition.kind)))
    engine.sample(changed, condition.kind, steps=2, **condition.settings())
    assert "not counted" not in report(changed)


class TestCompiled:
    """Tests with ComfyUI's node for torch.compile and a backend that only counts graphs."""

    @pytest.fixture
    def graphs(self):
        torch._dynamo.reset()
        yield []
        torch._dynamo.reset()

    @pytest.fixture
    def compiled(self, graphs):
        def backend(graph: Any, inputs: Any, **options: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        return engine.node("torch_compile", "TorchCompileModel", _model("small"), backend=backend)

    @pytest.mark.parametrize(
        "patches", [{}, {"set_model_output_block_patch": (patch_by_number,)}], ids=["plain", "patched"]
    )
    def test_compiled_images_match_the_model(self, compiled, graphs, patches):
        bare, compiled = (patched(patcher, **patches) for patcher in (_model("small"), compiled))
        changed, expected = with_deepcache(compiled), _small(with_deepcache(bare))
        torch.testing.assert_close(_small(changed), expected, rtol=1e-4, atol=1e-4)
        assert pattern(changed) == "F..F."
        count = len(graphs)
        assert count
        torch.testing.assert_close(_small(changed), expected, rtol=1e-4, atol=1e-4)
        assert len(graphs) == count
        # Without DeepCache the model may run graphs compiled with it.
        torch.testing.assert_close(_small(compiled), _small(bare), rtol=1e-4, atol=1e-4)

    def test_deepcache_before_the_node(self, graphs):
        changed = with_deepcache(_model("small"))
        expected = _small(changed)
        compiled = engine.node("torch_compile", "TorchCompileModel", changed, backend="eager")
        torch.testing.assert_close(_small(compiled), expected, rtol=1e-4, atol=1e-4)
        assert pattern(compiled) == "F..F."


def _small(patcher: Any) -> torch.Tensor:
    return engine.sample(patcher, "small", steps=5, size=(8, 8))


@pytest.mark.parametrize("kind", engine.TRANSFORMERS)
def test_model_without_long_skips_is_rejected(kind):
    with pytest.raises(TypeError, match=r"this model is a .*(MMDIT|StageC).*; EasyCache is for models without"):
        with_deepcache(engine.transformer(kind))
