"""The U-Nets that DeepCache finds in a pipeline, and several of them in one pipeline."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline, MotionAdapter
from torch import nn

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache, remove_deepcache
from DeepCache.engine.unets import unets_of
from tests.engine.dummy_unet import DummyUNet
from tests.engine.tiny_pipeline import tiny_unet

pytestmark = pytest.mark.usefixtures("nothing_is_counted")


class TwoStages(DiffusionPipeline):
    """A pipeline with two consecutive U-Nets, and components that resemble one."""

    def __init__(self, decoder, upscaler, motion_adapter, prior):
        super().__init__()
        self.register_modules(decoder=decoder, upscaler=upscaler, motion_adapter=motion_adapter, prior=prior)

    def __call__(self, steps=(6, 4)):
        x = torch.ones(1)
        for unet, count in zip((self.decoder, self.upscaler), steps, strict=True):
            for t in torch.arange(count, 0, -1):
                x, *_ = unet(x, t)
        self.maybe_free_model_hooks()
        return x


def _two_stages(decoder, upscaler):
    adapter = MotionAdapter(block_out_channels=(8, 8), motion_norm_num_groups=4, motion_num_attention_heads=2)
    return TwoStages(decoder, upscaler, adapter, nn.Linear(1, 1))


@pytest.fixture
def pipe():
    return _two_stages(DummyUNet(), DummyUNet())


def test_a_component_called_unet_is_the_denoiser():
    unet = tiny_unet()
    assert unets_of(SimpleNamespace(unet=unet, components={"unet": unet, "other": tiny_unet(1)})) == {"unet": unet}


def test_without_it_every_component_of_the_structure_is_found(pipe):
    assert unets_of(pipe) == {"decoder": pipe.decoder, "upscaler": pipe.upscaler}


def test_a_pipeline_without_one_is_refused_with_its_components():
    pipe = _two_stages(None, None)
    with pytest.raises(
        TypeError, match=r"TwoStages has none among its components \(decoder, upscaler, motion_adapter, prior\)"
    ):
        apply_deepcache(pipe)


def test_a_unet_that_is_not_a_torch_module_is_refused():
    with pytest.raises(TypeError, match="that of SimpleNamespace is of type str"):
        apply_deepcache(SimpleNamespace(unet="unet.onnx"))


def test_every_unet_has_its_own_run(pipe):
    engine = apply_deepcache(pipe, DeepCacheConfig(3))
    cached = pipe()
    assert {name: stats.pattern for name, stats in engine.unet_stats.items()} == {
        "decoder": "F..F..",
        "upscaler": "F..F",
    }
    assert engine.stats.pattern == "F..F.."
    assert pipe() == cached
    assert pipe(steps=(5, 5)) != cached
    assert engine.unet_stats["upscaler"].pattern == "F..F."
    remove_deepcache(pipe)
    assert not engine.attached
    assert not any(unet._forward_hooks or unet._forward_pre_hooks for unet in (pipe.decoder, pipe.upscaler))


def test_a_branch_must_exist_in_all_of_them(pipe):
    helper = DeepCacheSDHelper(_two_stages(tiny_unet(), DummyUNet()))
    with pytest.raises(ValueError, match="between 0 and 3 for this DummyUNet, got 4"):
        helper.set_params(cache_interval=2, cache_branch_id=4)


@pytest.mark.parametrize("name", ["decoder", "upscaler"])
def test_each_is_followed(pipe, name):
    engine = apply_deepcache(pipe, DeepCacheConfig(3))
    old, new = getattr(pipe, name), DummyUNet()
    setattr(pipe, name, new)
    pipe()
    assert "." in engine.unet_stats[name].pattern
    assert new._forward_hooks
    assert not old._forward_hooks


@pytest.mark.parametrize("make", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_a_copy_is_independent(pipe, make):
    engine = apply_deepcache(pipe, DeepCacheConfig(3))
    cached = pipe()
    other = make(pipe)
    assert other() == cached
    remove_deepcache(other)
    assert engine.attached
    assert pipe() == cached


def test_a_call_for_several_timesteps_at_once_is_full():
    """ParaDiGMS runs a window of steps as one batch: nothing stored of one window fits the next."""
    pipe = SimpleNamespace(unet=DummyUNet(), scheduler=SimpleNamespace(timesteps=torch.arange(9, 0, -1)))
    engine = apply_deepcache(pipe, DeepCacheConfig(3))
    for first in range(0, 6, 2):
        window = pipe.scheduler.timesteps[first : first + 2].clone()
        pipe.unet(torch.ones(2), window)
    assert engine.stats.pattern == "FFF"
    assert {reason for _, reason in engine.stats.reasons} == {"several timesteps in the batch"}
    pipe.unet(torch.ones(2), torch.tensor([3, 3]))
    assert engine.stats.pattern == "FFFF"
    pipe.unet(torch.ones(2), torch.tensor([2, 2]))
    assert engine.stats.pattern == "FFFF."


def test_a_call_with_a_gradient_runs_the_whole_unet_and_is_not_a_step():
    timesteps = torch.arange(4, 0, -1)
    unet = DummyUNet()
    engine = apply_deepcache(
        SimpleNamespace(unet=unet, scheduler=SimpleNamespace(timesteps=timesteps)), DeepCacheConfig(4)
    )
    for t in timesteps[:3]:
        noisy = torch.ones(1, requires_grad=True)
        unet(noisy, t)[0].backward()
        # The skip connections add it once, twice, four and eight times, and the mid block eight times.
        assert noisy.grad == 1 + 2 + 4 + 8 + 8
        with torch.no_grad():
            unet(noisy, t)
    assert engine.stats.pattern == "F.."
    assert engine.stats.reasons == tuple((step, "a gradient is required") for step in (0, 1))


def test_a_full_step_that_the_pipeline_omits_is_replaced():
    """RePaint adds noise at some timesteps without calling the U-Net. In your own loop, omitted steps may be those of
    another image."""
    timesteps = torch.arange(9, 0, -1)

    class Loop:
        def __init__(self):
            self.unet, self.scheduler = DummyUNet(), SimpleNamespace(timesteps=timesteps)

        def __call__(self):
            for position in (0, 1, 2, 4, 5, 6, 8):
                self.unet(torch.ones(1), timesteps[position])

    class DiffusersLoop(Loop):
        __module__ = "diffusers.pipelines.repaint"

    for pipe, pattern in ((DiffusersLoop(), "F..F.F."), (Loop(), "F..F.FF")):
        engine = apply_deepcache(pipe, DeepCacheConfig(3))
        pipe()
        assert engine.stats.pattern == pattern


def test_a_slot_that_a_step_did_not_have_starts_again_later():
    """One kind of guidance may follow another: the second call of a step is then for something else."""
    timesteps = torch.arange(6, 0, -1)
    unet = DummyUNet()
    ran = []
    unet.mid_block.register_forward_hook(lambda *_: ran.append("F"))
    pipe = SimpleNamespace(unet=unet, scheduler=SimpleNamespace(timesteps=timesteps))
    apply_deepcache(pipe, DeepCacheConfig(6), slot_key=lambda args, kwargs: float(args[0]))
    pattern = ""
    for t, calls in zip(timesteps, (2, 2, 1, 2, 2), strict=False):
        for call in range(calls):
            ran.append(".")
            unet(torch.full((1,), float(call)), t)
            pattern += ran[-1]
    assert pattern == "FF...." + "F" + ".."


def test_a_layer_that_another_unet_borrows_stores_nothing_there(pipe):
    """Versatile Diffusion uses the attentions of one U-Net in another at every call."""
    engine = apply_deepcache(pipe, DeepCacheConfig(3))
    pipe.decoder.up_blocks[1].layers[0] = pipe.upscaler.up_blocks[1].layers[0]
    cache = engine._caches["upscaler"]
    for t in torch.arange(3, 0, -1):
        pipe.decoder(torch.ones(1), t)
        assert cache._executor.take() == {}
