"""Training while DeepCache is enabled: losses and gradients are those of the plain U-Net."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.checkpoint import checkpoint

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache
from tests.engine.tiny_pipeline import generate
from tests.programs.by_hand import scheduled, tensor_of, text
from tests.programs.quick_unet import quick_pipeline, quick_unet

peft = pytest.importorskip("peft")

STEPS = 6
# Those of a denoising run.
TIMESTEPS = (900, 800, 700, 600, 500, 400, 300)


def scheduler_of_ten():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    assert set(TIMESTEPS) < set(scheduler.timesteps.tolist())
    return scheduler


def with_lora(unet, seed=1):
    torch.manual_seed(seed)
    return peft.get_peft_model(unet, peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))


def everything(unet):
    """All parameters are trained."""
    return unet.requires_grad_(True).train()


def adapters(unet):
    """A LoRA of diffusers is trained, in a U-Net in evaluation mode."""
    unet.requires_grad_(False)
    torch.manual_seed(1)
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    return unet


def wrapped_adapters(unet):
    """A LoRA of peft is trained."""
    return with_lora(unet)


def last_layer(unet):
    """A part that runs on shallow steps too."""
    unet.requires_grad_(False)
    unet.conv_out.requires_grad_(True)
    return unet


def mid_block(unet):
    """A part that runs on full steps only."""
    unet.requires_grad_(False)
    unet.mid_block.requires_grad_(True)
    return unet


TRAINED = [everything, adapters, wrapped_adapters, last_layer, mid_block]


def called_plainly(unet, noisy, timestep, prompt):
    return tensor_of(unet(noisy, timestep, encoder_hidden_states=prompt))


def checkpointed(unet, noisy, timestep, prompt):
    return checkpoint(called_plainly, unet, noisy, timestep, prompt, use_reentrant=False)


def checkpointed_with_reentry(unet, noisy, timestep, prompt):
    return checkpoint(called_plainly, unet, noisy.requires_grad_(True), timestep, prompt, use_reentrant=True)


class Projection(nn.Module):
    """Makes the prompt, within the checkpointed part."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.linear = nn.Linear(8, 8)


def checkpointed_with_what_makes_the_prompt(unet, noisy, timestep, prompt):
    projection = Projection()

    def call(image):
        return called_plainly(unet, noisy, timestep, projection.linear(image))

    return checkpoint(call, prompt.clone().requires_grad_(True), use_reentrant=True)


CALLS = [called_plainly, checkpointed, checkpointed_with_reentry, checkpointed_with_what_makes_the_prompt]


def losses_and_gradients(unet, call, timesteps=TIMESTEPS):
    """Of one image after the other."""
    scheduler, generator, losses = DDIMScheduler(), torch.Generator().manual_seed(3), []
    for t in timesteps:
        clean, noise = torch.randn(2, 1, 4, 8, 8, generator=generator)
        timestep = torch.tensor([t])
        loss = mse_loss(call(unet, scheduler.add_noise(clean, noise, timestep), timestep, text(0)), noise)
        loss.backward()
        losses.append(loss.detach())
    return losses, {name: parameter.grad for name, parameter in unet.named_parameters()}


def equal(one, other):
    return set(one) == set(other) and all(
        (one[name] is None) == (other[name] is None) and (one[name] is None or torch.equal(one[name], other[name]))
        for name in one
    )


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("trained", TRAINED)
def test_losses_and_gradients_are_plain(trained, call):
    unet = trained(quick_unet())
    losses, gradients = losses_and_gradients(copy.deepcopy(unet), call)
    assert any(gradient is not None and gradient.any() for gradient in gradients.values())
    apply_deepcache(SimpleNamespace(unet=unet, scheduler=scheduler_of_ten()), DeepCacheConfig(3))
    found, found_gradients = losses_and_gradients(unet, call)
    assert found == losses
    assert equal(found_gradients, gradients)


@pytest.mark.parametrize("trained", [everything, wrapped_adapters])
def test_gradient_checkpointing_of_the_blocks(trained):
    unet = trained(quick_unet())
    unet.enable_gradient_checkpointing()
    losses, gradients = losses_and_gradients(copy.deepcopy(unet), called_plainly)
    apply_deepcache(SimpleNamespace(unet=unet, scheduler=scheduler_of_ten()), DeepCacheConfig(3))
    found, found_gradients = losses_and_gradients(unet, called_plainly)
    assert found == losses
    assert equal(found_gradients, gradients)


@pytest.mark.parametrize("enabled", ["before", "after"])
def test_pipeline_with_adapters_follows_the_schedule(enabled):
    pipe = quick_pipeline()
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=3)
    if enabled == "before":
        helper.enable()
    pipe.unet = with_lora(pipe.unet)
    if enabled == "after":
        helper.enable()
    expected = generate(quick_pipeline(scheduled(with_lora(quick_unet()).base_model.model, "F..F..")))
    plain = generate(quick_pipeline(with_lora(quick_unet()).base_model.model))
    assert torch.equal(generate(pipe), expected)
    assert not torch.equal(expected, plain)
    helper.disable()
    assert torch.equal(generate(pipe), plain)


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("eval_first", [True, False])
def test_validation_images_during_training(trained, eval_first):
    pipe, plain = quick_pipeline(), quick_pipeline()
    pipe.unet, plain.unet = trained(pipe.unet), trained(plain.unet)
    apply_deepcache(pipe, DeepCacheConfig(3, forecast="none"))
    optimizers = [torch.optim.SGD(each.unet.parameters(), lr=0.1) for each in (pipe, plain)]
    for _ in range(2):
        gradients = []
        for each, optimizer in zip((pipe, plain), optimizers, strict=True):
            _, found = losses_and_gradients(each.unet, called_plainly, TIMESTEPS[:4])
            gradients.append({name: None if gradient is None else gradient.clone() for name, gradient in found.items()})
            optimizer.step()
            optimizer.zero_grad()
        assert equal(*gradients)
        training = pipe.unet.training
        if eval_first:
            pipe.unet.eval()
        base = plain.unet.base_model.model if trained is wrapped_adapters else plain.unet
        by_hand = scheduled(base.eval() if eval_first else base, "F..F..")
        assert torch.equal(generate(pipe), generate(quick_pipeline(by_hand)))
        pipe.unet.train(training)
        plain.unet.train(training)
        if trained is not everything:
            pipe.unet.eval()
            plain.unet.eval()


def test_loop_without_no_grad():
    """All calls are full, and the outputs have a history."""
    pipe, plain = quick_pipeline(), quick_pipeline()
    engine = apply_deepcache(pipe, DeepCacheConfig(3))
    for each in (pipe, plain):
        each.scheduler.set_timesteps(STEPS)
    latents = torch.ones(1, 4, 8, 8)
    for t in pipe.scheduler.timesteps:
        found, expected = (
            each.unet(latents, t, encoder_hidden_states=text(0)).sample.requires_grad_() for each in (pipe, plain)
        )
        assert torch.equal(found, expected)
    assert {reason for _, reason in engine.stats.reasons} == {"a gradient is required"}
