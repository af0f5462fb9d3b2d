"""A denoiser is one thread's for the length of a call."""

from __future__ import annotations

import threading

import pytest

from DeepCache import DeepCacheConfig, apply_deepcache
from tests.engine.dummy_unet import DummyUNet, Pipeline


@pytest.mark.parametrize("between", ["shallow", "skipped"])
def test_a_second_thread_is_refused_and_the_first_is_not_disturbed(between):
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, DeepCacheConfig(3, forecast="none", between=between))
    found, refusals = [pipe.call(1, 0)], []

    def other(*_):
        def call():
            with pytest.raises(RuntimeError, match="two threads call this DummyUNet at once") as refusal:
                pipe.call(5, 3)
            refusals.append(refusal.value)

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()

    layer = pipe.unet.up_blocks[1].layers[1]
    handle = layer.register_forward_pre_hook(other)
    found += [pipe.call(2, step) for step in (1, 2, 3)]
    handle.remove()
    alone = Pipeline(DummyUNet())
    apply_deepcache(alone, DeepCacheConfig(3, forecast="none", between=between))
    assert found == [alone.call(1, 0)] + [alone.call(2, step) for step in (1, 2, 3)]
    assert len(refusals) == (3 if between == "shallow" else 1)
    assert engine.stats.full_steps == 2


def test_threads_that_take_turns_are_served():
    pipe = Pipeline(DummyUNet())
    apply_deepcache(pipe, DeepCacheConfig(3))
    found = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: found.append(pipe.call(1, 0)))
        thread.start()
        thread.join()
    assert found == [found[0]] * 2
