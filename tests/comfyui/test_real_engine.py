"""The DeepCache node in ComfyUI's own engine: set `COMFYUI_PATH` to a checkout."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
import torch

from DeepCache.engine.layouts import layout_of
from tests.comfyui.nodes import pattern, report, with_deepcache

if not os.environ.get("COMFYUI_PATH"):
    pytest.skip("COMFYUI_PATH names no checkout of ComfyUI", allow_module_level=True)

from tests.comfyui import real_engine as engine

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


def _area(x: int, width: int) -> dict[str, Any]:
    # Height, width, and the position of the upper left corner.
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
        "PAG": (partial(engine.node, "pag", "PerturbedAttentionGuidance", scale=3.0), {}),
    }


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


class Condition(NamedTuple):
    """A change to a model, and the settings of its runs.

    Args:
        change: what returns the changed model.
        kind: the shape of the model.
        settings: what returns those that `engine.sample` takes.
        shows: whether images differ from those of the model as it was.
    """

    change: Callable[[Any], Any] = lambda patcher: patcher
    kind: str = "SD15"
    settings: Callable[[], dict[str, Any]] = dict
    shows: bool = True


def _node(module: str, name: str, **inputs: Any) -> Condition:
    return Condition(partial(engine.node, module, name, **inputs))


def _shape(kind: str, settings: Callable[[], dict[str, Any]] = dict) -> Condition:
    return Condition(kind=kind, settings=settings, shows=False)


def _from_an_image(kind: str, batch: int) -> dict[str, Any]:
    image = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    positive, negative = engine.cond(10, kind, concat_latent_image=image), engine.cond(20, kind)
    return {"positive": positive, "negative": negative, "batch": batch}


def _of_an_image(**settings: Any) -> dict[str, Any]:
    return {"latent": torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)), **settings}


def _right_half() -> torch.Tensor:
    return torch.arange(16).expand(1, 16, 16).ge(8).float()


def _with_lora(patcher: Any) -> Any:
    return engine.comfy.sd.load_lora_for_models(patcher, None, engine.lora(patcher), 0.8, 0)[0]


def _with_bypassed_lora(patcher: Any) -> Any:
    if not hasattr(engine.comfy.sd, "load_bypass_lora_for_models"):
        pytest.skip("this version of ComfyUI cannot bypass a LoRA")
    return engine.comfy.sd.load_bypass_lora_for_models(patcher, None, engine.lora(patcher), 0.8, 0)[0]


def _lora_on_one_prompt() -> dict[str, Any]:
    from comfy.hooks import create_hook_lora
    from comfy_extras.nodes_hooks import ConditioningSetProperties

    hooks = create_hook_lora(engine.lora(_model("SD15")), 0.8, 0)
    (positive,) = ConditioningSetProperties().set_properties(engine.cond(10), 1.0, "default", hooks=hooks)
    return {"positive": positive + engine.cond(11)}


def _without_memory(patcher: Any) -> Any:
    """A model that runs each prompt in a separate batch."""
    changed = patcher.clone()
    changed.add_object_patch("memory_required", lambda *args, **kwargs: 1e30)
    return changed


def _attention_by_number(patcher: Any) -> Any:
    def override(attention: Any, *args: Any, **kwargs: Any) -> Any:
        options = kwargs["transformer_options"]
        return attention(*args, **kwargs) * (1 + options["block"][1] / 50 + options["transformer_index"] / 100)

    changed = patcher.clone()
    changed.model_options["transformer_options"]["optimized_attention_override"] = override
    return changed


def _perp_neg(patcher: Any) -> Any:
    return engine.node("perpneg", "PerpNeg", patcher, empty_conditioning=engine.cond(30), neg_scale=1.0)


def _nag(patcher: Any) -> Any:
    pytest.importorskip("comfy_extras.nodes_nag", exc_type=ImportError)
    return engine.node("nag", "NAGuidance", patcher, nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5)


FURTHER_CONDITIONS = {
    "FreeU": _node("freelunch", "FreeU", b1=1.1, b2=1.2, s1=0.9, s2=0.2),
    "FreeU_V2": _node("freelunch", "FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "ToMe": _node("tomesd", "TomePatchModel", ratio=0.5),
    "SAG": _node("sag", "SelfAttentionGuidance", scale=0.5, blur_sigma=2.0),
    "NAG": Condition(_nag),
    "PerpNeg": Condition(_perp_neg),
    "Deep Shrink": _node(
        "model_downscale",
        "PatchModelAddDownscale",
        block_number=3,
        downscale_factor=2.0,
        start_percent=0.0,
        end_percent=0.35,
        downscale_after_skip=True,
        downscale_method="bicubic",
        upscale_method="bicubic",
    ),
    "HyperTile": _node("hypertile", "HyperTile", tile_size=32, swap_size=3, max_depth=1, scale_depth=False),
    "RescaleCFG": _node("model_advanced", "RescaleCFG", multiplier=0.7),
    "attention by number": Condition(_attention_by_number),
    "a LoRA": Condition(_with_lora),
    "a bypassed LoRA": Condition(_with_bypassed_lora),
    "a LoRA on one prompt": Condition(settings=_lora_on_one_prompt),
    "a LoRA with little memory": Condition(lambda patcher: _with_lora(engine.low_memory(patcher))),
    "one prompt after another": Condition(_without_memory, shows=False),
    "from an image": Condition(settings=partial(_of_an_image, denoise=0.6)),
    "in a part of an image": Condition(
        partial(engine.node, "differential_diffusion", "DifferentialDiffusion"),
        settings=lambda: _of_an_image(mask=_right_half()),
    ),
    "SD 2.x": _shape("SD20"),
    "SDXL refiner": _shape("SDXLRefiner"),
    "SSD-1B": _shape("SSD1B"),
    "KOALA": _shape("KOALA_700M"),
    "SVD": Condition(
        partial(engine.node, "video_model", "VideoLinearCFGGuidance", min_cfg=1.0),
        "SVD_img2vid",
        lambda: _from_an_image("SVD_img2vid", batch=3),
    ),
    "InstructPix2Pix": _shape("SD15_instructpix2pix", lambda: _from_an_image("SD15_instructpix2pix", batch=1)),
    "an inpainting model": _shape("inpainting", engine.inpainting),
}
# These draw random numbers in the layers.
DRAWING = {"ToMe", "HyperTile"}

_model = cache(engine.model)


@pytest.fixture(scope="module", autouse=True)
def _models_of_this_module_alone():
    yield
    _model.cache_clear()


def _drawing_by_layer(patcher: Any) -> Any:
    """Seeds each layer, since a shallow step does not draw the random numbers of the layers it omits."""

    def seed(q: Any, k: Any, v: Any, options: Any) -> Any:
        torch.manual_seed(options["transformer_index"])
        return q, k, v

    return _patched(patcher, set_model_attn1_patch=(seed,))


@pytest.fixture(params=FURTHER_CONDITIONS)
def condition(request):
    return FURTHER_CONDITIONS[request.param]


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
        if request.node.callspec.id in DRAWING:
            patcher = _drawing_by_layer(patcher)
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
    changed = with_deepcache(_with_lora(_model("SD15")), interval=2, branch=4)
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

    @pytest.mark.parametrize("patches", [{}, {"set_model_output_block_patch": (_by_number,)}], ids=["plain", "patched"])
    def test_compiled_images_match_the_model(self, compiled, graphs, patches):
        bare, compiled = (_patched(patcher, **patches) for patcher in (_model("small"), compiled))
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
