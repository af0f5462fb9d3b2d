"""SD.Next creates one helper per model, enables it for each generation, and swaps schedulers, pipelines and U-Nets."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)

from DeepCache import DeepCacheSDHelper
from tests.engine.tiny_pipeline import generate
from tests.programs.by_hand import Calls, text
from tests.programs.quick_unet import by_hand, quick_pipeline, quick_unet

SCHEDULE = "F..F.."


class Program:
    def __init__(self):
        self.model = quick_pipeline()
        self.worker = DeepCacheSDHelper(pipe=self.model)
        self.worker.set_params(cache_interval=3, cache_branch_id=0)

    def check_deepcache(self, enable):
        if enable:
            self.worker.enable()
        else:
            self.worker.disable()

    def generate(self, **call):
        self.check_deepcache(enable=True)
        image = generate(self.model, **call)
        self.check_deepcache(enable=False)
        return image


def everything(pipe):
    return type(pipe), set(vars(pipe)), {module: set(vars(module)) for module in pipe.unet.modules()}


def test_enabled_for_each_generation():
    program = Program()
    plain = generate(program.model)
    before = everything(program.model)
    for seed in (0, 0, 1):
        assert torch.equal(program.generate(seed=seed), by_hand(program.model, seed=seed))
        assert everything(program.model) == before
        assert torch.equal(generate(program.model), plain)


def test_disabled_more_than_once():
    program = Program()
    for _ in range(2):
        program.check_deepcache(enable=False)
    program.check_deepcache(enable=True)
    program.check_deepcache(enable=True)
    assert torch.equal(program.generate(), by_hand(program.model))


@pytest.mark.parametrize("while_on", [False, True])
def test_another_scheduler_for_each_generation(while_on):
    program = Program()
    for kind in (EulerAncestralDiscreteScheduler, UniPCMultistepScheduler, HeunDiscreteScheduler, DDIMScheduler):
        if while_on:
            program.check_deepcache(enable=True)
        program.model.scheduler = kind.from_config(program.model.scheduler.config)
        pattern = "F.." * 4 if kind is HeunDiscreteScheduler else SCHEDULE
        assert torch.equal(program.generate(), by_hand(program.model, pattern[:11]))


def test_pipeline_is_switched_by_from_pipe():
    program = Program()
    expected = by_hand(program.model)
    program.check_deepcache(enable=True)
    other = StableDiffusionImg2ImgPipeline.from_pipe(program.model)
    back = StableDiffusionPipeline.from_pipe(other)
    back.set_progress_bar_config(disable=True)
    assert (type(other), type(back)) == (StableDiffusionImg2ImgPipeline, StableDiffusionPipeline)
    assert torch.equal(generate(back), expected)
    program.model = back
    assert torch.equal(generate(program.model), expected)
    program.check_deepcache(enable=False)
    assert torch.equal(generate(back), by_hand(back, "F"))
    assert torch.equal(generate(program.worker.pipe), by_hand(back, "F"))


def test_unet_is_replaced_while_enabled():
    program = Program()
    first = program.model.unet
    program.check_deepcache(enable=True)
    program.model.unet = quick_unet(seed=1)
    assert torch.equal(generate(program.model), by_hand(program.model))
    program.check_deepcache(enable=False)
    assert not first._forward_hooks
    assert torch.equal(generate(program.model), by_hand(program.model, "F"))


@pytest.mark.parametrize("while_on", [False, True])
def test_unet_is_removed_and_replaced(while_on):
    program = Program()
    program.generate()
    if while_on:
        program.check_deepcache(enable=True)
    program.model.unet = None
    program.check_deepcache(enable=False)
    program.model.unet = quick_unet(seed=1)
    assert torch.equal(program.generate(), by_hand(program.model))


def test_removed_unet_can_be_freed():
    program = Program()
    program.check_deepcache(enable=True)
    generate(program.model)
    unet = weakref.ref(program.model.unet)
    program.check_deepcache(enable=False)
    program.model.unet = None
    program.model.unet = quick_unet(seed=1)
    program.generate()
    gc.collect()
    assert unet() is None


def test_enable_without_a_unet_is_refused():
    program = Program()
    program.model.unet = None
    with pytest.raises(TypeError, match="needs a denoiser"):
        program.check_deepcache(enable=True)
    program.model.unet = quick_unet()
    assert torch.equal(program.generate(), by_hand(program.model))


def test_a_generation_that_is_interrupted():
    program = Program()

    def interrupt(pipe, step, timestep, tensors):
        pipe._interrupt = step == 2
        return tensors

    program.check_deepcache(enable=True)
    generate(program.model, callback_on_step_end=interrupt)
    assert torch.equal(generate(program.model), by_hand(program.model))
    program.check_deepcache(enable=False)
    assert torch.equal(program.generate(), by_hand(program.model))


def test_a_second_pass_at_another_size():
    program = Program()
    program.check_deepcache(enable=True)
    for size in (64, 128, 64):
        assert torch.equal(generate(program.model, size=size), by_hand(program.model, size=size))


def test_prompts_that_change_within_a_run():
    program = Program()
    calls = []
    program.model.unet.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["encoder_hidden_states"].clone()), with_kwargs=True
    )
    second = torch.cat([text(8), text(9)])

    def change(pipe, step, timestep, tensors):
        return {"prompt_embeds": second} if step == 3 else {}

    call = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    expected = by_hand(program.model, "F..FF.", **call)
    program.check_deepcache(enable=True)
    assert torch.equal(generate(program.model, **call), expected)
    assert torch.equal(calls[-1], second)


def test_callback_that_calls_the_unet():
    program = Program()
    calls = Calls(program.model.unet)
    program.check_deepcache(enable=True)

    def look(pipe, step, timestep, tensors):
        calls(tensors["latents"], timestep, encoder_hidden_states=text(9), purpose="look")
        return tensors

    assert torch.equal(generate(program.model, callback_on_step_end=look), by_hand(program.model))
    assert calls.take() == SCHEDULE
