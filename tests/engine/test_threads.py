"""Threads that call one denoiser take turns, and each has its own run."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from DeepCache import DeepCacheConfig, apply_deepcache
from tests.engine.dummy_unet import DummyUNet, Pipeline
from tests.engine.slots import kept_slots
from tests.engine.tiny_pipeline import generate, tiny_pipeline

STEPS = 7


@pytest.mark.parametrize("between", ["shallow", "skipped"])
def test_threads_that_call_in_turn_have_a_run_each(between):
    """As the requests of a server: over one list, with one prompt, a call of one between two of another."""
    pipe = Pipeline(DummyUNet(), range(STEPS, 0, -1))
    engine = apply_deepcache(pipe, DeepCacheConfig(3, forecast="none", between=between))
    found = {start: [] for start in (1, 100, 10000)}
    threads = {start: ThreadPoolExecutor(1) for start in found}
    for step in range(STEPS):
        for start, thread in threads.items():
            found[start].append(thread.submit(pipe.call, start + step, step).result())
    for start, outputs in found.items():
        alone = Pipeline(DummyUNet(), range(STEPS, 0, -1))
        apply_deepcache(alone, DeepCacheConfig(3, forecast="none", between=between))
        assert outputs == [alone.call(start + step, step) for step in range(STEPS)]
    assert engine.stats.pattern == ("F..F..F" if between == "shallow" else "F--F--F")
    for thread in threads.values():
        thread.shutdown()


def test_threads_that_call_at_once_generate_what_each_generates_alone():
    pipe = tiny_pipeline()
    apply_deepcache(pipe, DeepCacheConfig(3))
    alone = [generate(pipe, seed=seed) for seed in range(4)]

    def request(seed):
        own = tiny_pipeline(pipe.unet)
        return generate(own, seed=seed)

    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            for found, expected in zip(threads.map(request, range(4)), alone, strict=True):
                assert torch.equal(found, expected)


def test_the_end_of_one_threads_run_does_not_end_another():
    pipe = Pipeline(DummyUNet(), range(STEPS, 0, -1))
    engine = apply_deepcache(pipe, DeepCacheConfig(3, forecast="none"))
    deep = []
    pipe.unet.mid_block.register_forward_hook(lambda *_: deep.append("ran"))
    pipe.call(1, 0)
    with ThreadPoolExecutor(1) as other:
        other.submit(pipe.call, 5, 0).result()
        other.submit(pipe.unet._reset_stateful_cache).result()
    pipe.call(2, 1)
    assert len(deep) == 2
    assert len(kept_slots(engine)) == 1


def test_an_interrupted_thread_does_not_end_another():
    pipe = Pipeline(DummyUNet(), range(STEPS, 0, -1))
    apply_deepcache(pipe, DeepCacheConfig(3, forecast="none"))
    alone = Pipeline(DummyUNet(), range(STEPS, 0, -1))
    apply_deepcache(alone, DeepCacheConfig(3, forecast="none"))
    assert pipe.call(1, 0) == alone.call(1, 0)
    with ThreadPoolExecutor(1) as other, pytest.raises(TypeError):
        other.submit(pipe.unet, "no tensor", pipe.scheduler.timesteps[1]).result()
    assert pipe.call(9, 1) == alone.call(9, 1)


def test_the_state_of_a_finished_thread_is_dropped():
    pipe = Pipeline(DummyUNet(), range(STEPS, 0, -1))
    engine = apply_deepcache(pipe, DeepCacheConfig(3))
    for _ in range(5):
        thread = threading.Thread(target=pipe.call, args=(1, 0))
        thread.start()
        thread.join()
    assert len(engine._caches["unet"]._threads._progress) <= 2


def test_settings_cannot_change_within_a_call():
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, DeepCacheConfig(3))
    pipe.call(1, 0)
    for change in (engine.detach, engine.end_run, lambda: engine.configure(DeepCacheConfig(2))):
        handle = pipe.unet.up_blocks[1].layers[1].register_forward_pre_hook(lambda *_, change=change: change())
        with pytest.raises(RuntimeError, match=r"within a call of the DummyUNet\. Do it between two steps"):
            pipe.call(1, 1)
        handle.remove()
        pipe.call(1, 0)
    engine.detach()
    assert pipe.call(1, 1) == Pipeline(DummyUNet()).call(1, 1)


def test_an_unguarded_call_is_refused_while_another_is_in_flight():
    """`torch.compile` may call the denoiser without its `__call__`."""
    pipe = Pipeline(DummyUNet())
    engine = apply_deepcache(pipe, DeepCacheConfig(3, forecast="none"))
    refusals = []

    def other():
        with pytest.raises(RuntimeError, match="two threads call this DummyUNet at once") as refusal:
            pipe.unet._call_impl(torch.ones(1), pipe.scheduler.timesteps[0])
        refusals.append(refusal.value)

    def start(*_):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    pipe.call(1, 0)
    handle = pipe.unet.up_blocks[1].layers[1].register_forward_pre_hook(start)
    pipe.call(2, 1)
    handle.remove()
    assert len(refusals) == 1
    assert engine.stats.pattern == "F."
