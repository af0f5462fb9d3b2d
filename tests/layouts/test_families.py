"""DeepCache on a denoiser of every family without a pipeline."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from benchmarks.harness.denoiser_families import FAMILIES, Family, denoiser_of
from DeepCache import DeepCacheConfig, apply_deepcache, remove_deepcache
from DeepCache.engine.attach import DeepCacheEngine
from DeepCache.engine.layouts import skip_branches
from tests.engine.slots import kept_slots
from tests.releases import COMPILES, COUNTS_OPERATIONS

LEVELS = (0.9, 0.75, 0.6, 0.4, 0.25, 0.1)
# One of every layout; the others are slow tests.
COMPILED_ALWAYS = ("CompVis", "Dance Diffusion", "Würstchen", "HunyuanDiT")
WITH_CONTROL = [
    *(pytest.param(family, None, id=family.name) for family in FAMILIES),
    *(
        pytest.param(family, family.control, id=f"{family.name}, ControlNet")
        for family in FAMILIES
        if family.control is not None
    ),
]


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


def _config(**settings: Any) -> DeepCacheConfig:
    return DeepCacheConfig(**{"cache_interval": 2, "forecast": "none"} | settings)


def _run(family: Family, denoiser: nn.Module, levels: tuple[float, ...] = LEVELS) -> list[torch.Tensor]:
    """The predictions of a run over a list of timesteps."""
    with torch.no_grad():
        return [family(denoiser, step, t) for step, t in enumerate(torch.tensor(levels))]


def _modules_that_ran(denoiser: nn.Module, call: Any) -> set[str]:
    """Names of the layers that a call runs, recorded by hooks independent of DeepCache."""
    ran: set[str] = set()
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.add(name)) for name, module in denoiser.named_modules()
    ]
    call()
    for handle in handles:
        handle.remove()
    return ran


@pytest.mark.parametrize(("family", "control"), WITH_CONTROL)
@torch.no_grad()
def test_a_shallow_step_with_the_true_deep_feature_is_the_full_step(family, control):
    denoiser = denoiser_of(family)
    assert len(skip_branches(denoiser)) == family.branches
    for number in range(family.branches):
        timesteps = torch.full((3,), 0.5)
        pipe = SimpleNamespace(unet=denoiser, scheduler=SimpleNamespace(timesteps=timesteps))
        engine = apply_deepcache(pipe, _config(cache_branch_id=number), slot_key=lambda args, kwargs: "all")
        first, second, third = timesteps
        conditions = control or dict
        full = family(denoiser, 0, first, **conditions())
        assert torch.equal(family(denoiser, 0, second, **conditions()), full)
        assert engine.stats.pattern == "F."
        # Another deep feature changes the output.
        family(denoiser, 0, third, **conditions())
        engine.end_run()
        family(denoiser, 0, first, **conditions())
        kept_slots(engine)[0].features[number]._differences[0].add_(1)
        changed = family(denoiser, 0, second, **conditions())
        assert changed.isfinite().all()
        assert not torch.equal(changed, full)


def test_interval_one_and_removal_change_nothing(family):
    denoiser = denoiser_of(family)
    before, plain = dict(vars(denoiser)), _run(family, denoiser)
    apply_deepcache(denoiser, _config(cache_interval=1))
    assert all(map(torch.equal, _run(family, denoiser), plain))
    apply_deepcache(denoiser, _config())
    assert not all(map(torch.equal, _run(family, denoiser), plain))
    remove_deepcache(denoiser)
    assert vars(denoiser) == before
    assert all(map(torch.equal, _run(family, denoiser), plain))


def test_only_layers_above_the_branch_run_on_shallow_steps(family):
    denoiser = denoiser_of(family)
    engine = apply_deepcache(denoiser, _config(cache_interval=3))
    ran = []
    with torch.no_grad():
        for step, t in enumerate(torch.tensor(LEVELS)):
            ran.append(_modules_that_ran(denoiser, lambda step=step, t=t: family(denoiser, step, t)))
    assert ran[0] == ran[3]
    assert all(shallow < ran[0] for shallow in (ran[1], ran[2], ran[4], ran[5]))
    stats = engine.stats
    assert stats.pattern == "F..F.."
    if COUNTS_OPERATIONS:
        assert stats.uncounted == ""
        assert 1 / 3 < stats.mac_share < 1
    assert stats.bytes_kept > 0


@torch.no_grad()
def test_a_forecast_continues_the_deep_feature(family):
    denoiser = denoiser_of(family)
    engine = apply_deepcache(denoiser, _config(forecast="linear"))
    timesteps = torch.tensor(LEVELS)
    features = []
    for step in range(3):
        family(denoiser, step, timesteps[step])
        if step % 2 == 0:
            features.append(kept_slots(engine, "")[0].features[0].at(step).clone())
    found = family(denoiser, 3, timesteps[3])
    # By hand: continue by half the distance between the last two.
    reused = apply_deepcache(denoiser, _config(forecast="none"))
    for step in range(3):
        family(denoiser, step, timesteps[step])
    slope = (features[1] - features[0]) / 2
    kept_slots(reused, "")[0].features[0]._differences[0].copy_(torch.add(features[1], slope))
    assert torch.equal(family(denoiser, 3, timesteps[3]), found)


@torch.no_grad()
def test_guidance_reuse_runs_half_of_the_batch(family):
    denoiser = denoiser_of(family)
    apply_deepcache(denoiser, _config())
    whole = _run(family, denoiser)
    engine = apply_deepcache(denoiser, _config(guidance_reuse=True))
    halved = _run(family, denoiser)
    assert engine.stats.halved_steps == 3
    prompt = 0 if family.prompt_first else 1
    for step in (1, 3, 5):
        expected = whole[step].chunk(2)[prompt]
        torch.testing.assert_close(halved[step].chunk(2)[prompt], expected, rtol=1e-4, atol=1e-5)
        before, now = halved[step - 1].chunk(2), halved[step].chunk(2)
        assert torch.equal(now[1 - prompt], now[prompt] + (before[1 - prompt] - before[prompt]))


def test_a_skipped_step_runs_no_layer(family):
    denoiser = denoiser_of(family)
    engine = apply_deepcache(denoiser, _config(between="skipped"))
    if family.name == "UniDiffuser":
        with pytest.raises(ValueError, match=r"this UniDiffuserModel returns 3\. Use between='shallow'"):
            _run(family, denoiser)
        return
    found = _run(family, denoiser)
    assert engine.stats.pattern == "F-F-F-"
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[3], found[2])


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=family.name, marks=() if family.name in COMPILED_ALWAYS else pytest.mark.slow)
        for family in FAMILIES
    ],
)
@COMPILES
def test_there_are_two_graphs_and_no_more(family):
    torch.compiler.reset()
    expected = denoiser_of(family)
    apply_deepcache(expected, _config())
    denoiser, counter = denoiser_of(family), CompileCounter()
    apply_deepcache(denoiser, _config())
    denoiser.compile(backend=counter)
    try:
        for _ in range(2):
            for found, plain in zip(_run(family, denoiser), _run(family, expected), strict=True):
                torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
        assert counter.frame_count == 2
    finally:
        torch.compiler.reset()


def test_any_wrapper_of_the_denoiser_works(family):
    class Wrapper(nn.Module):
        def __init__(self, denoiser: nn.Module) -> None:
            super().__init__()
            self.model = denoiser

        def forward(self, sample: torch.Tensor, timestep: Any, **conditions: Any) -> Any:
            return self.model(sample, timestep, **conditions)

    denoiser = denoiser_of(family)
    engine = apply_deepcache(denoiser, _config())
    expected = _run(family, denoiser)
    if family.timestep_name:
        return
    assert all(map(torch.equal, _run(family, Wrapper(denoiser)), expected))
    assert engine.stats.pattern == "F.F.F."


def test_the_engine_shows_its_denoiser():
    denoiser = denoiser_of(FAMILIES[0])
    engine = apply_deepcache(denoiser, _config())
    assert isinstance(engine, DeepCacheEngine)
    assert repr(engine).startswith("<DeepCacheEngine on LdmUNet: DeepCacheConfig(cache_interval=2,")
    remove_deepcache(denoiser)
    assert repr(engine).startswith("<DeepCacheEngine detached from LdmUNet: ")
