"""The DeepCache node in ComfyUI's own engine: set `COMFYUI_PATH` to a checkout."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from tests.comfyui.nodes import pattern, report, with_deepcache

if not os.environ.get("COMFYUI_PATH"):
    pytest.skip("COMFYUI_PATH names no checkout of ComfyUI", allow_module_level=True)

from tests.comfyui import real_engine as engine

pytestmark = pytest.mark.filterwarnings("default")

BRANCHES = {"SD15": 12, "SDXL": 9}
# More than one evaluation a step, the last of them once: what one that makes 5 steps makes.
EVALUATIONS = {"heun": 9, "heunpp2": 12, "dpm_2": 9, "dpm_2_ancestral": 9}


@pytest.fixture(scope="module", params=BRANCHES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def patcher(kind):
    return engine.model(kind)


def _area(x: int, width: int) -> dict[str, Any]:
    # Height, width, and the place of the upper left corner.
    return {"area": (16, width, 0, x)}


def _patched(patcher: Any, **patches: Any) -> Any:
    changed = patcher.clone()
    for name, patch in patches.items():
        getattr(changed, name)(*patch)
    return changed


def _by_number(h: Any, skip: Any, options: Any) -> Any:
    number, transformers = options["block"][1], options["transformer_index"]
    return h * (1 + number / 50), skip * (1 + transformers / 100)


def conditions(kind: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    def same(patcher: Any) -> Any:
        return patcher

    half = torch.zeros(1, 16, 16)
    half[..., :8] = 1.0
    both = {
        "positive": engine.cond(11, kind, **_area(0, 10)) + engine.cond(12, kind, **_area(6, 10)),
    }
    control = {"control": engine.Residuals(kind), "control_apply_to_uncond": True}
    return {
        "plain": (same, {}),
        "two images": (same, {"batch": 2}),
        "an odd size": (same, {"size": (13, 18)}),
        "without guidance": (same, {"cfg": 1.0}),
        "two prompts": (same, {"positive": engine.cond(10, kind) + engine.cond(11, kind)}),
        "areas": (same, both),
        "a mask": (same, {"positive": engine.cond(11, kind, mask=half) + engine.cond(12, kind, mask=1 - half)}),
        "a ControlNet": (
            same,
            {"positive": engine.cond(13, kind, **control), "negative": engine.cond(14, kind, **control)},
        ),
        "patches by number": (lambda patcher: _patched(patcher, set_model_output_block_patch=(_by_number,)), {}),
        "an input patch": (
            lambda patcher: _patched(patcher, set_model_input_block_patch=(lambda h, options: h * 1.02,)),
            {},
        ),
        "perturbed attention": (_perturbed, {}),
    }


def _perturbed(patcher: Any) -> Any:
    """The positive cond once more, without attention in the middle block."""
    from comfy.model_patcher import set_model_options_patch_replace
    from comfy.samplers import calc_cond_batch

    def again(args: dict[str, Any]) -> Any:
        options = args["model_options"].copy()
        options = set_model_options_patch_replace(options, lambda q, k, v, extra, mask=None: v, "attn1", "middle", 0)
        (found,) = calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
        return args["denoised"] + 2 * (args["cond_denoised"] - found)

    changed = patcher.clone()
    changed.set_model_sampler_post_cfg_function(again)
    return changed


NAMES = list(conditions("SD15"))


@pytest.mark.parametrize("name", NAMES)
class TestConditions:
    def test_with_interval_one_no_bit_differs(self, kind, patcher, name):
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
    # dpm_adaptive makes as many as it finds fit for what it is given.
    found = pattern(changed)
    assert found == ("F." * len(found))[: len(found)]
    assert count == EVALUATIONS.get(sampler, count)


def test_a_part_of_a_run(patcher, kind):
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


def test_from_one_part_of_the_run_to_another(patcher, kind):
    changed = with_deepcache(patcher, start_percent=0.3, end_percent=0.8)
    engine.sample(changed, kind)
    assert pattern(changed) == "FFFF..F.FF"


def test_the_share_of_the_work_is_counted(patcher, kind):
    changed = with_deepcache(patcher)
    engine.sample(changed, kind, steps=6)
    assert "not counted" not in report(changed)


def test_compiled(patcher, kind):
    set_torch_compile_wrapper = pytest.importorskip("comfy_api.torch_helpers.torch_compile").set_torch_compile_wrapper
    expected = engine.sample(with_deepcache(patcher), kind)
    compiled = patcher.clone()
    set_torch_compile_wrapper(compiled, "eager")
    changed = with_deepcache(compiled)
    torch.testing.assert_close(engine.sample(changed, kind), expected, rtol=1e-4, atol=1e-4)
    assert pattern(changed) == "F..F..F..F"


def test_a_model_without_long_skips():
    class Transformer(torch.nn.Module):
        pass

    patcher = engine.model()
    patcher.add_object_patch("diffusion_model", Transformer())
    with pytest.raises(TypeError, match="this model is a Transformer; EasyCache is for models without"):
        with_deepcache(patcher)
