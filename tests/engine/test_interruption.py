"""Ctrl-C at any line of the engine during a call restores the U-Net and drops the run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import DeepCache
from DeepCache import DeepCacheConfig, apply_deepcache
from DeepCache.engine.call_guard import _Guarded
from tests.engine.dummy_unet import DummyUNet, Pipeline
from tests.engine.slots import kept_slots

ENGINE = str(Path(DeepCache.__file__).parent / "engine")
# Every line takes five times as long.
STRIDE = 5


def _interrupted_at(line, call):
    """Makes a call, raises KeyboardInterrupt at the nth executed line of the engine, and returns whether it got there.

    The guard itself changes nothing before it runs another file of the engine.
    """
    remaining = [line]

    def trace(frame, event, _):
        file = frame.f_code.co_filename
        if not file.startswith(ENGINE) or file.endswith("call_guard.py"):
            return trace
        if event == "line":
            remaining[0] -= 1
            if remaining[0] == 0:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def _state(unet):
    # With torch 2.0 the guard is a class as well.
    kinds = [(name, type(module)) for name, module in unet.named_modules()]
    modules = [(name, kind.__mro__[2] if kind.__mro__[1] is _Guarded else kind) for name, kind in kinds]
    # The guard is detached and attached at the start of a run: it may be missing, and the next run restores it.
    names = [set(vars(module)) - {"_compiled_call_impl"} for module in unet.modules()]
    return modules, len(unet.down_blocks), len(unet.up_blocks), names


@pytest.mark.parametrize("between", ["shallow", "skipped"])
@pytest.mark.parametrize("step", [0, 1, 3], ids=["first", "between", "full"])
def test_the_unet_is_unchanged_and_the_next_step_is_full(between, step):
    lines = 0
    while True:
        pipe = Pipeline(DummyUNet())
        engine = apply_deepcache(pipe, DeepCacheConfig(3, forecast="linear", between=between))
        before = _state(pipe.unet)
        for number in range(step):
            pipe.call(1, number)
        if not _interrupted_at(1 + lines, lambda pipe=pipe: pipe.call(1, step)):
            break
        assert _state(pipe.unet) == before
        assert not kept_slots(engine)
        assert pipe.call(1, step + 1) == Pipeline(DummyUNet()).call(1, step + 1)
        assert engine.stats.pattern == "F"
        lines += STRIDE
    assert lines > 50


def test_a_step_that_cannot_be_skipped_is_full_with_a_reason():
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, DeepCacheConfig(3, forecast="none", between="skipped"))
    pipe.call(1, 0)
    # As in a copy of the U-Net that was made during a run.
    del pipe.unet.__dict__["_compiled_call_impl"]
    pipe.call(1, 1)
    assert engine.stats.pattern == "FF"
    assert engine.stats.reasons == ((1, "called where it could not be skipped"),)
