"""`stats` matches the run: every call is recorded, and its multiply-accumulates are counted."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache
from DeepCache.schedule import (
    AdaptiveSchedule,
    BranchSchedule,
    ExplicitSchedule,
    NonUniformSchedule,
    Step,
    StepSchedule,
    UniformSchedule,
    WindowSchedule,
)
from tests.engine.tiny_pipeline import generate, tiny_pipeline, tiny_unet

FlopCounterMode = pytest.importorskip("torch.utils.flop_counter", reason="torch 2.0").FlopCounterMode

# The layers of the down path whose outputs are the skip connections 1 to 5; that of `conv_in` is 0.
LAYERS = [
    "down_blocks.0.resnets.0",
    "down_blocks.0.resnets.1",
    "down_blocks.0.downsamplers.0",
    "down_blocks.1.resnets.0",
    "down_blocks.1.resnets.1",
]


class Seen(NamedTuple):
    """A recorded call: its timestep, `F`, `-` or the number of the branch, the batch, multiply-accumulates."""

    timestep: int
    kind: str
    batch: int
    macs: int


class WatchedUNet(UNet2DConditionModel):
    """Records what each call runs, inside of everything that DeepCache changes."""

    def watch(self):
        self.calls = []
        self.ran = []
        # Attention that is counted on a CPU.
        self.set_attn_processor(AttnProcessor())
        for name in ("conv_in", *LAYERS, "mid_block", "conv_out"):
            self.get_submodule(name).register_forward_hook(
                lambda module, args, output, name=name: self.ran.append((name, len(args[0])))
            )
        return self

    def __call__(self, sample, timestep, *args, **kwargs):
        if sample.device.type == "meta":
            return super().__call__(sample, timestep, *args, **kwargs)
        self.ran.clear()
        with FlopCounterMode(display=False) as counter:
            output = super().__call__(sample, timestep, *args, **kwargs)
        names = [name for name, _ in self.ran]
        batch = self.ran[0][1] if self.ran else 0
        assert {rows for _, rows in self.ran} <= {batch}
        if not names:
            kind = "-"
        elif "mid_block" in names:
            assert names == ["conv_in", *LAYERS, "mid_block", "conv_out"]
            kind = "F"
        else:
            branch = len(names) - 2
            assert names == ["conv_in", *LAYERS[:branch], "conv_out"]
            kind = str(branch)
        self.calls.append(Seen(int(timestep), kind, batch, counter.get_total_flops() // 2))
        return output


@pytest.fixture
def pipe():
    watched = WatchedUNet.from_config(tiny_unet().config)
    watched.load_state_dict(tiny_unet().state_dict())
    return tiny_pipeline(watched.eval().watch())


def recorded(calls):
    """The expected `stats` of these calls without the share: pattern, full, shallow, skipped and halved steps."""
    steps = {}
    for call in calls:
        steps.setdefault(call.timestep, []).append(call)
    whole = max(call.batch for call in calls)
    kinds = ["F" if any(call.kind == "F" for call in step) else step[0].kind for step in steps.values()]
    several = len({kind for kind in kinds if kind.isdigit()}) > 1
    pattern = "".join(kind if several or not kind.isdigit() else "." for kind in kinds)
    shallow = sum(kind.isdigit() for kind in kinds)
    halved = sum(0 < step[0].batch < whole for step in steps.values())
    return pattern, kinds.count("F"), shallow, kinds.count("-"), halved


def said(stats):
    return stats.pattern, stats.full_steps, stats.shallow_steps, stats.skipped_steps, stats.halved_steps


@cache
def full_macs(batch=2, length=3):
    """Multiply-accumulates of a call without caching, counted while it runs."""
    unet = tiny_unet()
    unet.set_attn_processor(AttnProcessor())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(torch.zeros(batch, 4, 8, 8), 0, torch.zeros(batch, length, 8))
    return counter.get_total_flops() // 2


def check(stats, calls):
    """Compares `stats` with the calls of a run of the pipeline, whose batch is the two halves of guidance."""
    assert said(stats) == recorded(calls)
    share = sum(call.macs for call in calls) / (len(calls) * full_macs())
    assert stats.mac_share == pytest.approx(share, rel=1e-12)


def run(pipe, steps, **call):
    pipe.unet.calls = []
    generate(pipe, steps, **call)
    return pipe.unet.calls


F = Step(True)
EACH = (
    F,
    Step(False, 1, "linear"),
    Step(False, 4, guidance_reuse=True),
    Step(True, forecast="linear", guidance_reuse=True),
    Step(False, 1, skipped=True),
    Step(False, 3),
    F,
)

CASES = {
    "every step": (DeepCacheConfig(1), "FFFFF"),
    "uniform": (DeepCacheConfig(3), "F..F..F"),
    "uniform, two": (DeepCacheConfig(2, 3), "F.F.F."),
    "uniform, longer than the run": (DeepCacheConfig(9, 5, forecast="none"), "F...."),
    "one step": (DeepCacheConfig(3), "F"),
    "non-uniform": (DeepCacheConfig(3, 2, "non-uniform"), None),
    "non-uniform schedule": (DeepCacheConfig(schedule=NonUniformSchedule(3, center=5, power=2.0, branch=1)), None),
    "explicit": (DeepCacheConfig(schedule=ExplicitSchedule((0, 1, 4), branch=2)), "FF..F.."),
    "window": (DeepCacheConfig(schedule=WindowSchedule(UniformSchedule(3), 2, 7)), "FF.F..FFF"),
    "branches": (DeepCacheConfig(schedule=BranchSchedule(UniformSchedule(4), (0, 5, 2))), "F052F052F0"),
    "branches, all alike": (DeepCacheConfig(schedule=BranchSchedule(UniformSchedule(3), (4, 4))), "F..F..F"),
    "skipped": (DeepCacheConfig(3, between="skipped"), "F--F--F-"),
    "skipped at explicit steps": (DeepCacheConfig(schedule=ExplicitSchedule((0, 2, 3)), between="skipped"), "F-FF--"),
    "response": (DeepCacheConfig(4, between="skipped", forecast="response"), "F---F---"),
    "alternating": (DeepCacheConfig(5, 1, between="alternating"), "F.-.-F.-.-F."),
    "alternating at explicit steps": (
        DeepCacheConfig(schedule=ExplicitSchedule((0, 1, 3, 6)), between="alternating"),
        "FF.F.-F.-.",
    ),
    "alternating with branches": (
        DeepCacheConfig(schedule=BranchSchedule(UniformSchedule(6), (0, 1, 2)), between="alternating"),
        "F0-2-2F0-2",
    ),
    "guidance reuse": (DeepCacheConfig(3, 1, guidance_reuse=True), "F..F..F."),
    "guidance reuse, alternating": (DeepCacheConfig(4, guidance_reuse=True, between="alternating"), "F.-.F.-."),
    "steps": (DeepCacheConfig(schedule=StepSchedule(EACH)), "F14F-3F"),
    "adaptive": (DeepCacheConfig(4, 1, "adaptive", threshold=1), None),
    "adaptive, skipped": (DeepCacheConfig(5, skip_mode="adaptive", threshold=0.05, between="skipped"), None),
    "adaptive, alternating": (DeepCacheConfig(schedule=AdaptiveSchedule(1, 6), between="alternating"), None),
}
HALVED = {"guidance reuse": 5, "guidance reuse, alternating": 4, "steps": 2}


@pytest.mark.parametrize("name", CASES)
def test_a_run_of_a_pipeline(pipe, name):
    config, pattern = CASES[name]
    steps = 12 if pattern is None else len(pattern)
    engine = apply_deepcache(pipe, config)
    calls = run(pipe, steps)
    stats = engine.stats
    check(stats, calls)
    assert engine.pattern == stats.pattern
    assert stats.halved_steps == HALVED.get(name, 0)
    if pattern is not None:
        assert (stats.pattern, stats.reasons) == (pattern, ())
    else:
        # More than those that are always full, if the run decides.
        certain = config.effective_schedule.full_steps(steps)
        adaptive = name.startswith("adaptive")
        assert certain + adaptive <= stats.full_steps < steps


def test_a_second_run_is_recorded_by_itself(pipe):
    engine = apply_deepcache(pipe, DeepCacheConfig(3, 1))
    for steps, pattern in ((5, "F..F."), (2, "F."), (4, "F..F")):
        calls = run(pipe, steps)
        check(engine.stats, calls)
        assert engine.stats.pattern == pattern


@pytest.mark.parametrize("interval", [2, 3, 5])
@pytest.mark.parametrize("mode", ["uniform", "non-uniform"])
def test_a_run_of_the_helper(pipe, mode, interval):
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(interval, 1, mode)
    with helper:
        calls = run(pipe, 11)
    check(helper.stats, calls)
    full = [number for number, call in enumerate(calls) if call.kind == "F"]
    assert full[0] == 0
    assert len(full) == -(-11 // interval)
    assert mode == "non-uniform" or full == list(range(0, 11, interval))


def test_a_run_from_an_image_begins_in_the_middle(pipe):
    """The first step is full at any position in the list of timesteps."""
    engine = apply_deepcache(pipe, DeepCacheConfig(3))
    pipe.scheduler.set_timesteps(9)
    calls = loop(pipe, positions=range(4, 9))
    assert [call.kind for call in calls] == ["F", "0", "0", "F", "0"]
    assert said(engine.stats) == recorded(calls)
    assert engine.stats.pattern == "F..F."


@cache
def prompt(number, batch, length):
    return torch.randn(batch, length, 8, generator=torch.Generator().manual_seed(number))


def loop(pipe, steps=None, positions=None, calls_of=lambda position: ((2, 3),)):
    """A loop without a pipeline, with one call per step for each pair of a batch and a length of the prompt."""
    if steps is not None:
        pipe.scheduler.set_timesteps(steps)
    pipe.unet.calls = []
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for position in range(steps) if positions is None else positions:
            for number, (batch, length) in enumerate(calls_of(position)):
                sample = torch.randn(batch, 4, 8, 8, generator=generator)
                pipe.unet(sample, pipe.scheduler.timesteps[position], prompt(number, batch, length))
    return pipe.unet.calls


SEVERAL = {
    "two of one size": lambda position: ((1, 3), (1, 3)),
    "two of two batches": lambda position: ((1, 3), (4, 3)),
    "two of two lengths": lambda position: ((1, 3), (1, 30)),
    "a second from step 2 on": lambda position: ((1, 3),) * (1 + (position >= 2)),
    "a second up to step 2": lambda position: ((1, 3),) * (1 + (position <= 2)),
    "another batch from step 4 on": lambda position: ((1 if position < 4 else 3, 3),),
    "three, one of another length": lambda position: ((1, 3), (1, 9), (1, 3)),
}


@pytest.mark.parametrize(
    ("several", "config"),
    [(several, "uniform") for several in SEVERAL]
    + [("three, one of another length", config) for config in ("branches", "alternating", "skipped")],
)
def test_several_calls_per_step(pipe, several, config):
    steps, calls_of = 8, SEVERAL[several]
    engine = apply_deepcache(pipe, CASES[config][0])
    calls = loop(pipe, steps, calls_of=calls_of)
    pattern, full, shallow, skipped, _ = recorded(calls)
    assert said(engine.stats) == (pattern, full, shallow, skipped, 0)
    whole = sum(full_macs(*call) for position in range(steps) for call in calls_of(position))
    share = sum(call.macs for call in calls) / whole
    assert engine.stats.mac_share == pytest.approx(share, rel=1e-12)
    assert 0.1 < share < 1


def test_a_full_second_call_makes_its_step_full(pipe):
    engine = apply_deepcache(pipe, DeepCacheConfig(3))
    calls = loop(pipe, 6, calls_of=SEVERAL["a second from step 2 on"])
    assert [call.kind for call in calls] == ["F", "0", "0", "F", "F", "F", "0", "0", "0", "0"]
    assert engine.stats.pattern == "F.FF.."
    assert engine.stats.reasons == ((2, "first call of its slot"),)


@pytest.mark.parametrize(
    ("positions", "kinds"),
    [((0, 1, 4, 5, 6), "F0F0F"), ((0, 1, 2, 5, 7, 8), "F00FF0"), ((0, 1, 0, 1, 2, 3), None)],
)
def test_steps_that_a_program_omits(pipe, positions, kinds):
    engine = apply_deepcache(pipe, DeepCacheConfig(3))
    pipe.scheduler.set_timesteps(9)
    calls = loop(pipe, positions=positions)
    if kinds is None:
        # It went back: a new run, perhaps within a step of the one before, and stats has only the new one.
        calls, kinds = calls[2:], "FF0F"
    assert "".join(call.kind for call in calls) == kinds
    assert said(engine.stats) == recorded(calls)
    assert engine.stats.pattern == kinds.replace("0", ".")


def test_calls_with_a_gradient_are_counted_and_are_not_steps(pipe):
    engine = apply_deepcache(pipe, DeepCacheConfig(4, 1))
    pipe.scheduler.set_timesteps(4)
    calls, gradients = [], []
    for position in range(4):
        calls += loop(pipe, positions=[position])
        if position in (1, 2):
            sample = torch.randn(2, 4, 8, 8, requires_grad=True)
            pipe.unet(sample, pipe.scheduler.timesteps[position], torch.zeros(2, 3, 8))
            gradients.append(pipe.unet.calls[-1])
    stats = engine.stats
    assert said(stats) == recorded(calls) == ("F...", 1, 3, 0, 0)
    assert [call.kind for call in gradients] == ["F", "F"]
    assert stats.reasons == ((1, "a gradient is required"), (2, "a gradient is required"))
    share = sum(call.macs for call in calls + gradients) / (6 * full_macs())
    assert stats.mac_share == pytest.approx(share, rel=1e-12)
