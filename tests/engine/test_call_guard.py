"""The patch of a shallow step ends with the call, however it ends."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
from tests.engine.dummy_unet import DummyUNet, Pipeline
from tests.engine.slots import kept_slots
from tests.engine.tiny_pipeline import generate, small_unet, tiny_pipeline
from tests.releases import COMPILES


def _interrupted(pipe, at, error):
    """Calls the U-Net until a hook on one of its layers raises at a step, as Ctrl-C does."""
    layer = pipe.unet.up_blocks[1].layers[1]

    def interrupt(module, args):
        raise error

    for step in range(at):
        pipe.call(1, step)
    handle = layer.register_forward_pre_hook(interrupt)
    with pytest.raises(type(error)):
        pipe.call(1, at)
    handle.remove()


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(), ValueError()], ids=lambda error: type(error).__name__
)
@pytest.mark.parametrize("at", [0, 1], ids=["full", "shallow"])
def test_an_interrupted_call_restores_the_unet(error, at):
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, DeepCacheConfig(3))
    before = [len(pipe.unet.down_blocks), len(pipe.unet.up_blocks), type(pipe.unet), pipe.unet.mid_block]
    _interrupted(pipe, at, error)
    assert [len(pipe.unet.down_blocks), len(pipe.unet.up_blocks), type(pipe.unet), pipe.unet.mid_block] == before
    assert not kept_slots(engine)
    assert pickle.loads(pickle.dumps(pipe.unet.state_dict())) == pipe.unet.state_dict()
    copy.deepcopy(pipe.unet)
    engine.configure(DeepCacheConfig(2))
    pipe.call(1, at + 1)
    assert engine.stats.pattern == "F"


@COMPILES
def test_the_guard_does_not_look_like_a_compiled_call():
    pytest.importorskip("peft", minversion="0.15", reason="peft before 0.15 does not check")
    from peft.utils.hotswap import prepare_model_for_compiled_hotswap

    unet = small_unet()
    apply_deepcache(unet, DeepCacheConfig())
    assert not unet._compiled_call_impl
    with pytest.raises(ValueError, match="No adapter layers found"):
        # The check for a compiled model has passed.
        prepare_model_for_compiled_hotswap(unet)


@COMPILES
def test_a_lost_guard_is_restored_at_the_next_run():
    pipe = Pipeline(copy.deepcopy(_with_deepcache(DummyUNet())))
    assert pipe.unet._compiled_call_impl is None
    pipe.call(1, 0)
    assert pipe.unet._compiled_call_impl is not None


def _with_deepcache(unet):
    apply_deepcache(unet, DeepCacheConfig())
    return unet


@COMPILES
def test_a_call_compiled_after_enabling_is_kept_after_removal():
    pipe = tiny_pipeline(small_unet())
    plain = generate(pipe)
    apply_deepcache(pipe, DeepCacheConfig(2, forecast="none"))
    cached = generate(pipe)
    pipe.unet.compile(backend="eager")
    compiled = pipe.unet._compiled_call_impl
    assert torch.equal(generate(pipe), cached)
    remove_deepcache(pipe)
    assert pipe.unet._compiled_call_impl is compiled
    assert torch.equal(generate(pipe), plain)
    torch.compiler.reset()


def test_attaching_is_all_or_nothing(monkeypatch):
    unet = DummyUNet()
    before = dict(vars(unet))
    hooks = len(unet._forward_pre_hooks), len(unet._forward_hooks)
    failing = RuntimeError("no hook for this module")

    def register(hook, with_kwargs):
        raise failing

    monkeypatch.setattr(unet.up_blocks[1].layers[0], "register_forward_hook", register)
    with pytest.raises(RuntimeError, match="no hook for this module"):
        apply_deepcache(Pipeline(unet), DeepCacheConfig())
    assert vars(unet) == before
    assert (len(unet._forward_pre_hooks), len(unet._forward_hooks)) == hooks


def test_the_unets_own_reset_method_is_called_too():
    class Stateful(DummyUNet):
        calls = ()

        def _reset_stateful_cache(self, recurse=True):
            self.calls = (*self.calls, recurse)

    pipe = Pipeline(Stateful())
    engine = apply_deepcache(pipe, DeepCacheConfig(3))
    pipe.call(1, 0)
    pipe.unet._reset_stateful_cache(recurse=False)
    assert pipe.unet.calls == (False,)
    assert not kept_slots(engine)
    remove_deepcache(pipe)
    assert "_reset_stateful_cache" not in vars(pipe.unet)
    pipe.unet._reset_stateful_cache()
    assert pipe.unet.calls == (False, True)


def test_a_guard_still_works_after_an_interrupted_detach(monkeypatch):
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, DeepCacheConfig(3))
    guard = pipe.unet._compiled_call_impl

    class Interrupted(dict):
        def __delitem__(self, key):
            raise KeyboardInterrupt

    monkeypatch.setattr("DeepCache.engine.call_guard.vars", lambda module: Interrupted(module.__dict__), raising=False)
    with pytest.raises(KeyboardInterrupt):
        engine.detach()
    monkeypatch.undo()
    assert pipe.unet._compiled_call_impl is guard
    assert pipe.call(1, 0) == Pipeline(DummyUNet()).call(1, 0)
    engine.detach()
    assert "_compiled_call_impl" not in vars(pipe.unet)
