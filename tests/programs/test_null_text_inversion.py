"""Gradients through single calls: null-text inversion (prompt), guidance by a loss (latents), and `torch.func`."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from DeepCache import DeepCacheConfig, apply_deepcache
from tests.programs.by_hand import Calls, tensor_of, text
from tests.programs.quick_unet import quick_pipeline

STEPS, INNER = 7, 2
COND = text(0)


def plain_attention():
    """Attention kernels with forward-mode derivatives."""
    return sdpa_kernel(SDPBackend.MATH)


class Program:
    def __init__(self):
        self.pipe = quick_pipeline()
        self.pipe.unet.requires_grad_(False)
        self.plain = copy.deepcopy(self.pipe.unet)
        self.calls = Calls(self.pipe.unet)
        self.engine = apply_deepcache(self.pipe, DeepCacheConfig(3, forecast="none"))
        self.pipe.scheduler.set_timesteps(STEPS)
        self.timesteps = self.pipe.scheduler.timesteps

    def unet(self, latents, t, prompt):
        return tensor_of(self.pipe.unet(latents, t, encoder_hidden_states=prompt))

    def plain_unet(self, latents, t, prompt):
        return tensor_of(self.plain(latents, t, encoder_hidden_states=prompt))


@pytest.fixture
def program():
    return Program()


def gradient(unet, latents, t, prompt, wanted):
    """The output of a call, and the gradient of its norm."""
    leaves = {
        "prompt": prompt.clone().requires_grad_(wanted == "prompt"),
        "latents": latents.clone().requires_grad_(wanted == "latents"),
    }
    output = unet(leaves["latents"], t, leaves["prompt"])
    (found,) = torch.autograd.grad(output.square().sum(), leaves[wanted])
    return output.detach(), found


def test_null_text_inversion(program):
    latents, trajectory = torch.randn(1, 4, 8, 8), []
    # Inversion goes backwards through the list.
    with torch.no_grad():
        for step in range(STEPS):
            t = program.timesteps[STEPS - step - 1]
            latents = latents + 0.1 * program.calls(latents, t, encoder_hidden_states=COND, purpose="inversion")
            trajectory.append(latents)
    assert program.calls.take() == "F" * STEPS
    uncond = torch.zeros_like(COND)
    for step in range(STEPS):
        t, target = program.timesteps[step], trajectory[STEPS - step - 1]
        with torch.no_grad():
            cond_noise = program.calls(latents, t, encoder_hidden_states=COND, purpose="cond")
        for _ in range(INNER):
            uncond = uncond.detach().clone().requires_grad_(True)
            plain = uncond.detach().clone().requires_grad_(True)
            for leaf, unet in ((uncond, program.unet), (plain, program.plain_unet)):
                noise = unet(latents, t, leaf)
                (latents - 0.1 * (noise + 7.5 * (cond_noise - noise)) - target).square().mean().backward()
            assert torch.equal(uncond.grad, plain.grad)
            uncond = uncond - 0.1 * uncond.grad
        with torch.no_grad():
            both = torch.cat([uncond.detach(), COND])
            noise = program.calls(torch.cat([latents] * 2), t, encoder_hidden_states=both, purpose="both")
            latents = latents - 0.1 * (noise[:1] + 7.5 * (noise[1:] - noise[:1]))
    signs = program.calls.take()
    # The unconditional prompt changes at each step, and the inversion called the first step once.
    assert (signs[0::2], signs[1::2]) == ("FFFF..F", "F" * STEPS)


def test_calls_with_gradients_are_not_steps(program):
    for step, t in enumerate(program.timesteps):
        latents = torch.randn(1, 4, 8, 8)
        for _ in range(INNER):
            found = gradient(program.unet, latents, t, COND + step, "prompt")
            expected = gradient(program.plain_unet, latents, t, COND + step, "prompt")
            assert all(map(torch.equal, found, expected))
        with torch.no_grad():
            program.calls(latents, t, encoder_hidden_states=COND)
    assert program.calls.take() == "F..F..F"


@pytest.mark.parametrize("guided", [(2, 3, 4), (0, 1), (3,), (0,), (6,), tuple(range(STEPS))], ids=str)
def test_guidance_by_a_loss_at_some_steps(program, guided):
    latents = torch.randn(1, 4, 8, 8)
    for step, t in enumerate(program.timesteps):
        if step in guided:
            noise, found = gradient(program.unet, latents, t, COND, "latents")
            _, expected = gradient(program.plain_unet, latents, t, COND, "latents")
            assert torch.equal(found, expected)
            latents = latents - 0.1 * noise - 0.01 * found
        else:
            with torch.no_grad():
                latents = latents - 0.1 * program.calls(latents, t, encoder_hidden_states=COND)
    signs = program.calls.take()
    assert "X" not in signs
    assert not signs or signs[0] == "F"


@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("wanted", ["prompt", "latents"])
def test_gradients_by_transforms(program, grad_mode, wanted):
    for t in program.timesteps:
        latents = torch.randn(1, 4, 8, 8)
        with grad_mode():
            found, expected = (
                torch.func.grad(
                    lambda *given, unet=unet, t=t: unet(given[0], t, given[1]).square().sum(), argnums=number
                )(latents, COND)
                for unet in (program.unet, program.plain_unet)
                for number in [("latents", "prompt").index(wanted)]
            )
        assert torch.equal(found, expected)
        with torch.no_grad():
            program.calls(latents, t, encoder_hidden_states=COND)
    assert program.calls.take() == "F..F..F"


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad])
def test_jacobian_vector_product(program, grad_mode):
    for t in program.timesteps:
        latents, direction = torch.randn(2, 1, 4, 8, 8)
        with grad_mode(), plain_attention():
            found, expected = (
                torch.func.jvp(lambda given, unet=unet, t=t: unet(given, t, COND), (latents,), (direction,))
                for unet in (program.unet, program.plain_unet)
            )
        assert all(map(torch.equal, found, expected))
        with torch.no_grad():
            program.calls(latents, t, encoder_hidden_states=COND)
    assert program.calls.take() == "F..F..F"


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad])
def test_forward_differentiation(program, grad_mode):
    for t in program.timesteps:
        latents, direction = torch.randn(2, 1, 4, 8, 8)
        found = []
        with grad_mode(), plain_attention(), forward_ad.dual_level():
            for unet in (program.unet, program.plain_unet):
                dual = forward_ad.make_dual(latents, direction)
                found.append(forward_ad.unpack_dual(unet(dual, t, COND)))
        assert torch.equal(found[0].primal, found[1].primal)
        assert torch.equal(found[0].tangent, found[1].tangent)
        with torch.no_grad():
            program.calls(latents, t, encoder_hidden_states=COND)
    assert program.calls.take() == "F..F..F"


def test_functional_call(program):
    """With parameters that require gradients, as of a hypernetwork."""
    for t in program.timesteps:
        latents, found = torch.randn(1, 4, 8, 8), []
        for unet in (program.pipe.unet, program.plain):
            parameters = {name: value.detach().clone().requires_grad_() for name, value in unet.named_parameters()}
            output = torch.func.functional_call(unet, parameters, (latents, t), {"encoder_hidden_states": COND})
            found.append(torch.autograd.grad(tensor_of(output).sum(), list(parameters.values()), allow_unused=True))
        assert all(one is other is None or torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_gradients_of_nested_keyword_arguments():
    program = Program()
    for t in program.timesteps:
        latents, found = torch.randn(1, 4, 8, 8), []
        for unet in (program.pipe.unet, program.plain):
            residual = torch.zeros(1, 8, 8, 8, requires_grad=True)
            output = unet(
                latents,
                t,
                COND,
                down_block_additional_residuals=[residual, residual],
                mid_block_additional_residual=torch.zeros(1, 8, 8, 8),
            )
            found.append(torch.autograd.grad(tensor_of(output).sum(), residual)[0])
        assert torch.equal(*found)
