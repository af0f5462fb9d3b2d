"""Calls that a gradient is taken through, and what training does between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.fuzz.oracle import output_of, same
from tests.fuzz.world import Finding, Unit, World, _trace

__all__ = ["draw_gradient", "draw_train", "draw_validate", "gradient", "train", "validate"]


@dataclass(frozen=True)
class Wanted:
    """What a gradient is taken with respect to.

    Args:
        sample: the sample.
        prompt: the conditioning.
        parameters: `"none"`, `"all"`, or `"adapter"`, a few of the deepest.
        recompute: whether the call is made under `checkpoint`: `"no"`, `"reentrant"` or `"other"`.
    """

    sample: bool
    prompt: bool
    parameters: str
    recompute: str = "no"


def _draw_wanted(draft: Any) -> Wanted:
    rng = draft.rng
    wanted = Wanted(draft.chance(0.4), draft.chance(0.4), rng.choice(("none", "all", "adapter")))
    if not (wanted.sample or wanted.prompt or wanted.parameters != "none"):
        wanted = Wanted(False, False, "adapter")
    if draft.chance(0.2):
        wanted = Wanted(True, wanted.prompt, wanted.parameters, rng.choice(("reentrant", "other")))
    return wanted


def draw_train(draft: Any) -> dict[str, Any]:
    """Draws steps of training: timesteps and prompts of their own, then a step of the optimiser."""
    return {
        "wanted": _draw_wanted(draft),
        "timesteps": [draft.rng.randrange(1, 999) for _ in range(draft.rng.randint(1, 2))],
        "training": draft.chance(0.7),
        "update": draft.chance(0.4),
        "seed": draft.rng.randrange(1000),
    }


def train(world: World, wanted: Wanted, timesteps: list[int], training: bool, update: bool, seed: int) -> None:
    """Steps of training between the steps of a loop."""
    unit = world.units[0]
    for module in unit.both():
        module.train(training)
    for number, value in enumerate(timesteps):
        generator = torch.Generator().manual_seed(seed + number)
        sample = torch.randn(2, *world.kind.shape(2), generator=generator).to(unit.dtype)
        text = torch.randn(2, 3, 4, generator=generator).to(unit.dtype)
        _compare(world, unit, wanted, sample, torch.tensor([value, value]), text, update)
    for module in unit.both():
        module.eval()


def draw_gradient(draft: Any) -> dict[str, Any]:
    """Draws gradients at a step of a loop, as null-text inversion and Attend-and-Excite take them."""
    return {"loop": draft.loop() if draft.specs else -1, "wanted": _draw_wanted(draft), "calls": draft.rng.randint(1, 3)}


def gradient(world: World, loop: int, wanted: Wanted, calls: int) -> None:
    """Gradients at the timestep at which a loop stands, before it makes the step."""
    found = world.loops.get(loop)
    if found is None or found.done:
        return
    for _ in range(calls):
        request = found.request(found.spec.roles[0], "no_grad")
        if request.text is None or not request.text.is_inference():
            _compare(world, found.unit, wanted, request.sample, request.timestep, request.text, False)
    found.step()


def draw_validate(draft: Any) -> dict[str, Any]:
    """Draws calls of a validation."""
    return {"timesteps": draft.rng.sample(range(1, 999), draft.rng.randint(1, 3)), "training": draft.chance(0.3)}


def validate(world: World, timesteps: list[int], training: bool) -> None:
    """Calls without gradients, each another image with another prompt."""
    from tests.fuzz.actions import _single

    unit = world.units[0]
    for module in unit.both():
        module.train(training)
    for number, value in enumerate(timesteps):
        request = _single(world, unit, torch.tensor([value]), value, 1 + number, world.new_run(), number)
        world.call(unit, request)
    for module in unit.both():
        module.eval()


def _compare(
    world: World, unit: Unit, wanted: Wanted, sample: Tensor, timestep: Any, text: Tensor | None, update: bool
) -> None:
    """Output and gradients with DeepCache against those without."""
    if world.setup.conditioning == "none":
        text = None
    results = []
    for called, module in ((unit.called, unit.module), (unit.twin.module, unit.twin.module)):
        trained = _trained(world, module, wanted)
        flags = [each.requires_grad for each in module.parameters()]
        try:
            for each in trained:
                each.requires_grad_(True)
            results.append(_gradients(world, called, wanted, trained, sample, timestep, text))
        except (Exception, KeyboardInterrupt) as error:
            raise Finding(f"{type(error).__name__} raised in a gradient call", _trace(error)) from error
        finally:
            for each, flag in zip(module.parameters(), flags, strict=True):
                each.requires_grad_(flag)
    world.counts["gradient calls"] += 1
    (output, found), (expected, true) = results
    if not same(output, expected):
        raise Finding("another output where a gradient is wanted", f"{wanted}")
    for number, (one, other) in enumerate(zip(found, true, strict=True)):
        if (one is None) != (other is None) or (one is not None and not same(one, other, 1e-5)):
            raise Finding("another gradient", f"{wanted}, number {number} of {len(true)}")
    if update:
        _update(world, unit, wanted, true)


def _trained(world: World, module: torch.nn.Module, wanted: Wanted) -> list[Tensor]:
    if wanted.parameters == "none":
        return []
    deepest = world.kind.producers[-1]
    return [each for name, each in module.named_parameters() if wanted.parameters == "all" or name.startswith(deepest)]


def _gradients(
    world: World, called: Any, wanted: Wanted, trained: list[Tensor], sample: Tensor, timestep: Any, text: Tensor | None
) -> tuple[Tensor, list[Tensor | None]]:
    inputs: list[Tensor] = []
    with torch.enable_grad():
        # What the gradient does not go to is the very tensor that the loop has.
        sample = sample.detach().clone().requires_grad_() if wanted.sample else sample
        if wanted.sample:
            inputs.append(sample)
        if wanted.prompt and text is not None:
            text = text.detach().clone().requires_grad_()
            inputs.append(text)
        args, kwargs = world.kind.arguments(sample, timestep, text, None, False, False)

        def call(first: Tensor) -> Tensor:
            return output_of(called(first, *args[1:], **kwargs))

        if wanted.recompute == "no":
            output = call(sample)
        else:
            output = checkpoint(call, sample, use_reentrant=wanted.recompute == "reentrant")
        if not output.requires_grad:
            if inputs or trained:
                raise Finding("no gradient where one is wanted", f"{wanted}")
            return output, []
        parameters = [*inputs, *trained]
        before = [each.grad for each in parameters]
        for each in parameters:
            each.grad = None
        output.square().sum().backward()
        found = [each.grad for each in parameters]
        for each, grad in zip(parameters, before, strict=True):
            each.grad = grad
    return output.detach(), found


def _update(world: World, unit: Unit, wanted: Wanted, gradients: list[Tensor | None]) -> None:
    """A step of the optimiser on the U-Net and its twin, with the same gradients."""
    for module in unit.both():
        trained = _trained(world, module, wanted)
        for parameter, found in zip(trained, gradients[-len(trained) :] if trained else [], strict=True):
            if found is not None:
                with torch.no_grad():
                    parameter.sub_(0.01 * found.clamp(-1, 1))
