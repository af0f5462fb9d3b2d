"""xinference has one helper for all pipelines: each request sets `helper.pipe`, enables and disables it, and sets
`helper.pipe = None`."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionImg2ImgPipeline

from DeepCache import DeepCacheSDHelper
from tests.engine.tiny_pipeline import generate
from tests.programs.quick_unet import by_hand, quick_pipeline, quick_unet

SCHEDULE = "F..F.."


class Server:
    def __init__(self, model):
        self.model = model
        self.helper = DeepCacheSDHelper()
        self.helper.set_params(cache_interval=3, cache_branch_id=0)

    @contextmanager
    def deepcache(self, model):
        self.helper.pipe = model
        self.helper.enable()
        try:
            yield
        finally:
            self.helper.disable()
            self.helper.pipe = None

    def request(self, model, **call):
        with self.deepcache(model):
            return generate(model, **call)


def test_consecutive_requests():
    pipe = quick_pipeline()
    server, plain = Server(pipe), generate(pipe)
    for seed in range(2):
        assert torch.equal(server.request(pipe, seed=seed), by_hand(pipe, seed=seed))
        assert server.helper.stats.pattern == SCHEDULE
    assert torch.equal(generate(pipe), plain)


def test_pipelines_in_turn():
    one, two = quick_pipeline(), quick_pipeline(quick_unet(seed=1))
    server, plain = Server(one), [generate(one), generate(two)]
    for _ in range(2):
        for pipe in (one, two):
            assert torch.equal(server.request(pipe), by_hand(pipe))
        assert torch.equal(generate(one), plain[0])
        assert torch.equal(generate(two), plain[1])


def test_pipelines_that_share_a_unet():
    pipe = quick_pipeline()
    server = Server(pipe)
    image_to_image = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    for model in (image_to_image, pipe, image_to_image):
        with server.deepcache(model):
            assert server.helper.pipe is model
            assert torch.equal(generate(pipe), by_hand(pipe))
        assert not pipe.unet._forward_hooks


def test_helper_is_moved_while_enabled():
    one, two = quick_pipeline(), quick_pipeline(quick_unet(seed=1))
    plain, helper = generate(one), DeepCacheSDHelper(one)
    helper.set_params(cache_interval=3)
    helper.enable()
    helper.pipe = two
    helper.enable()
    assert torch.equal(generate(one), plain)
    assert torch.equal(generate(two), by_hand(two))
    helper.disable()
    assert torch.equal(generate(two), by_hand(two, "F"))


def test_settings_between_assignment_and_enable():
    one, two = quick_pipeline(), quick_pipeline(quick_unet(seed=1))
    helper = DeepCacheSDHelper(one)
    helper.set_params(cache_interval=3)
    helper.enable()
    generate(one)
    helper.pipe = two
    helper.set_params(cache_interval=2)
    helper.enable()
    assert torch.equal(generate(two), by_hand(two, "F.F.F."))
    assert helper.stats.pattern == "F.F.F."
    assert not one.unet._forward_hooks


def test_settings_between_two_requests():
    pipe = quick_pipeline()
    server = Server(pipe)
    assert torch.equal(server.request(pipe), by_hand(pipe))
    server.helper.set_params(cache_interval=2, cache_branch_id=0)
    assert server.helper.params["cache_interval"] == 2
    assert torch.equal(server.request(pipe), by_hand(pipe, "F.F.F."))


def test_without_a_pipeline_the_helper_is_disabled():
    pipe = quick_pipeline()
    server = Server(pipe)
    server.request(pipe)
    with pytest.raises(ValueError, match="no pipeline to enable DeepCache on"):
        server.helper.enable()
    assert server.helper.params["cache_interval"] == 3
    assert server.helper.function_dict == {}
    server.helper.disable()


def test_failed_request():
    pipe = quick_pipeline()
    server = Server(pipe)

    def fail(pipe, step, timestep, tensors):
        raise InterruptedError

    for _ in range(2):
        with pytest.raises(InterruptedError):
            server.request(pipe, callback_on_step_end=fail)
        assert torch.equal(generate(pipe), by_hand(pipe, "F"))
        assert torch.equal(server.request(pipe), by_hand(pipe))


def test_other_scheduler_during_a_request():
    pipe = quick_pipeline()
    server, default = Server(pipe), pipe.scheduler
    for scheduler in (EulerDiscreteScheduler(), default, EulerDiscreteScheduler()):
        with server.deepcache(pipe):
            pipe.scheduler = scheduler
            assert torch.equal(generate(pipe), by_hand(pipe))
            pipe.scheduler = default
            assert torch.equal(generate(pipe), by_hand(pipe))
