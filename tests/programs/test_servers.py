"""Servers with one model: each request has its own pipeline and scheduler, in its own thread or in turn with others."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache
from tests.engine.tiny_pipeline import generate
from tests.programs.by_hand import Calls, scheduled, text
from tests.programs.quick_unet import quick_pipeline, quick_unet

STEPS = 6
SCHEDULE = "F..F.."
KINDS = [DDIMScheduler, EulerDiscreteScheduler]


def by_hand(unet, seed, kind=None, steps=STEPS, **call):
    pipe = quick_pipeline(scheduled(unet, SCHEDULE[:steps]))
    pipe.scheduler = pipe.scheduler if kind is None else kind()
    return generate(pipe, seed=seed, steps=steps, **call)


class Server:
    def __init__(self):
        self.unet = quick_unet()
        self.plain = quick_unet()
        self.engine = apply_deepcache(quick_pipeline(self.unet), DeepCacheConfig(3, forecast="none"))

    def request(self, seed, kind=None, steps=STEPS, **call):
        pipe = quick_pipeline(self.unet)
        pipe.scheduler = pipe.scheduler if kind is None else kind()
        return generate(pipe, seed=seed, steps=steps, **call)


def test_concurrent_requests():
    server = Server()
    requests = [(seed, kind, steps) for seed in range(2) for kind in KINDS for steps in (4, 6)]
    with ThreadPoolExecutor(4) as pool:
        for found, request in zip(pool.map(lambda request: server.request(*request), requests), requests, strict=True):
            assert torch.equal(found, by_hand(server.plain, *request))


def test_requests_that_meet_at_each_step():
    server, barrier = Server(), threading.Barrier(3)

    def meet(pipe, step, timestep, tensors):
        barrier.wait(30)
        return tensors

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda seed: server.request(seed, callback_on_step_end=meet), range(3)))
    assert all(torch.equal(each, by_hand(server.plain, seed)) for seed, each in enumerate(found))


def test_same_prompt_in_several_threads():
    server, scheduler = Server(), DDIMScheduler()
    scheduler.set_timesteps(STEPS)
    calls, barrier, lock = Calls(server.plain, called=server.unet), threading.Barrier(3), threading.Lock()
    prompt = text(0)

    @torch.no_grad()
    def request(number):
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(number))
        for t in scheduler.timesteps:
            barrier.wait(30)
            with lock:
                latents = latents - 0.1 * calls(latents, t, encoder_hidden_states=prompt, purpose=number)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(request, range(3)))
    assert calls.take() == "".join(sign * 3 for sign in SCHEDULE)


@pytest.mark.parametrize("own_list", [True, False])
def test_requests_in_turn_in_one_thread(own_list):
    """As coroutines with one prompt each."""
    server, shared = Server(), DDIMScheduler()
    shared.set_timesteps(STEPS)
    calls = Calls(server.plain, called=server.unet)

    async def request(number):
        scheduler = DDIMScheduler() if own_list else shared
        if own_list:
            scheduler.set_timesteps(STEPS)
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(number))
        for t in scheduler.timesteps:
            with torch.no_grad():
                latents = latents - 0.1 * calls(latents, t, encoder_hidden_states=text(number), purpose=number)
            await asyncio.sleep(0)

    async def serve():
        await asyncio.gather(*(request(number) for number in range(3)))

    asyncio.run(serve())
    assert calls.take() == ("FFF" * STEPS if own_list else "".join(sign * 3 for sign in SCHEDULE))


def test_steps_in_any_thread_of_a_pool():
    """As with `asyncio.to_thread`, where each request has a prompt."""
    server, scheduler = Server(), DDIMScheduler()
    scheduler.set_timesteps(STEPS)
    calls, prompts = Calls(server.plain, called=server.unet), [text(0), text(1)]
    threads = [ThreadPoolExecutor(1) for _ in range(2)]

    @torch.no_grad()
    def step(number, t):
        calls(torch.randn(1, 4, 8, 8), t, encoder_hidden_states=prompts[number], purpose=number)

    for index, t in enumerate(scheduler.timesteps):
        for number in range(2):
            threads[(index + number) % 2].submit(step, number, t).result()
    assert "X" not in calls.take()
    for thread in threads:
        thread.shutdown()


def test_request_cancelled_in_its_thread():
    server = Server()

    def cancel(pipe, step, timestep, tensors):
        if step == 1:
            raise InterruptedError
        return tensors

    with ThreadPoolExecutor(2) as pool:
        for seed in range(3):
            cancelled = pool.submit(server.request, seed, callback_on_step_end=cancel)
            generated = pool.submit(server.request, seed)
            with pytest.raises(InterruptedError):
                cancelled.result()
            assert torch.equal(generated.result(), by_hand(server.plain, seed))


def test_request_with_its_own_helper():
    unet = quick_unet()
    plain = quick_unet()
    for seed in range(2):
        pipe = quick_pipeline(unet)
        with DeepCacheSDHelper(pipe) as helper:
            helper.set_params(cache_interval=3)
            assert torch.equal(generate(pipe, seed=seed), by_hand(plain, seed))
        assert torch.equal(generate(pipe, seed=seed), generate(quick_pipeline(plain), seed=seed))


def test_different_sizes_in_threads():
    server = Server()
    with ThreadPoolExecutor(3) as pool:
        sizes = (64, 128, 64)
        found = list(pool.map(lambda seed: server.request(seed, size=sizes[seed]), range(3)))
    for seed, size in enumerate(sizes):
        assert torch.equal(found[seed], by_hand(server.plain, seed, size=size))


def test_settings_change_during_requests():
    """Each request has one setting or the other."""
    unet, plain = quick_unet(), quick_unet()
    pipe = quick_pipeline(unet)
    engine = apply_deepcache(pipe, DeepCacheConfig(3, forecast="none"))
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(generate, quick_pipeline(unet), seed=seed) for seed in range(4)]
        for interval in (2, 3, 1):
            engine.configure(DeepCacheConfig(interval, forecast="none"))
        for each in running:
            assert each.result().isfinite().all()
    assert torch.equal(generate(pipe), generate(quick_pipeline(plain)))
