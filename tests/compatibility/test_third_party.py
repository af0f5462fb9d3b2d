"""A third party's U-Net, known to DeepCache by its shape alone, against the same steps taken by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from DeepCache import DeepCacheConfig, DeepCacheSDHelper, apply_deepcache
from DeepCache.engine.layouts import skip_branches
from tests.compatibility.components import generator, seeded
from tests.compatibility.conftest import Witness
from tests.compatibility.third_party_unet import ForeignOutput, ForeignUNet

BRANCHES = range(9)
LEVELS = (0.9, 0.7, 0.5, 0.3, 0.1)
PATTERNS = {1: "FFFFF", 2: "F.F.F", 3: "F..F."}
TEXT = torch.rand(3, generator=generator(9))


def _film(step: int) -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=generator(step))


class Sampler:
    """A minimal pipeline; every step has its own video."""

    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet

    @torch.no_grad()
    def __call__(self) -> list[torch.Tensor]:
        self.scheduler = SimpleNamespace(timesteps=torch.tensor(LEVELS))
        return [
            _tensor(self.unet(_film(step), level, text=TEXT)) for step, level in enumerate(self.scheduler.timesteps)
        ]


def _tensor(output: Any) -> torch.Tensor:
    if isinstance(output, tuple):
        output, remark = output
        assert remark == "of a third party"
    return output.denoised if isinstance(output, ForeignOutput) else output


def _sampler(returns: str = "tensor") -> Sampler:
    return Sampler(seeded(lambda: ForeignUNet(returns)))


def _down_path(unet: Any, time: torch.Tensor) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """What makes the skip connections, one after the other."""
    first, second, third = unet.down_blocks

    def layer(block: Any, i: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: block.motions[i](block.convolutions[i](x, time), TEXT)

    return [
        unet.stem,
        layer(first, 0),
        first.downsamplers[0],
        layer(second, 0),
        layer(second, 1),
        layer(second, 2),
        second.downsamplers[0],
        layer(third, 0),
        layer(third, 1),
    ]


def _up_path(unet: Any, time: torch.Tensor) -> list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """What takes them, one after the other; the last layer of a block is followed by what makes it larger."""
    first, second, third = unet.up_blocks

    def layer(block: Any, i: int, then: Any = None) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        def run(x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
            x = block.convolutions[i](block.motions[i](torch.cat([x, skip], dim=1), TEXT), time)
            return x if then is None else then(x)

        return run

    return [
        layer(first, 0),
        layer(first, 1),
        layer(first, 2, then=first.upsamplers[0]),
        layer(second, 0),
        layer(second, 1),
        layer(second, 2),
        layer(second, 3, then=second.upsamplers[0]),
        layer(third, 0),
        layer(third, 1),
    ]


@torch.no_grad()
def _by_hand(unet: Any, step: int, branch: int, deep: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of a step and the deep feature of the branch; a shallow step where that is given."""
    time = unet.embed(torch.tensor(LEVELS)[step])
    down, up = _down_path(unet, time), _up_path(unet, time)
    shallow = deep is not None
    x, skips = _film(step), []
    for layer in down[: branch + 1] if shallow else down:
        x = layer(x)
        skips.append(x)
    x = deep if shallow else unet.mid_block(x, time)
    kept = len(up) - 1 - branch
    for number, layer in enumerate(up):
        if number == kept:
            deep = x
        if number >= kept or not shallow:
            x = layer(x, skips.pop())
    return unet.head(x), deep


def _run_by_hand(unet: Any, branch: int, pattern: str) -> list[torch.Tensor]:
    outputs, deep = [], None
    for step, kind in enumerate(pattern):
        output, deep = _by_hand(unet, step, branch, None if kind == "F" else deep)
        outputs.append(output)
    return outputs


def _same(outputs: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(itertools.starmap(torch.equal, zip(outputs, expected, strict=True)))


def test_branches_are_read_from_the_blocks():
    assert [branch.name for branch in skip_branches(ForeignUNet())] == [
        "conv_in",
        "down_blocks.0 layer 0",
        "down_blocks.0 downsampler",
        "down_blocks.1 layer 0",
        "down_blocks.1 layer 1",
        "down_blocks.1 layer 2",
        "down_blocks.1 downsampler",
        "down_blocks.2 layer 0",
        "down_blocks.2 layer 1",
    ]


def test_manual_steps_equal_the_unet():
    sampler = _sampler()
    plain = sampler()
    for branch in BRANCHES:
        assert _same(_run_by_hand(sampler.unet, branch, "FFFFF"), plain)
        assert not _same(_run_by_hand(sampler.unet, branch, "F..F."), plain)


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("interval", PATTERNS)
@pytest.mark.parametrize("returns", ["tuple", "dataclass", "tensor"])
def test_every_step_equals_the_manual_step(returns, interval, branch):
    sampler = _sampler(returns)
    expected = _run_by_hand(sampler.unet, branch, PATTERNS[interval])
    engine = apply_deepcache(sampler, DeepCacheConfig(interval, branch, forecast="none"))
    witness = Witness(sampler.unet)
    for _ in range(2):
        assert _same(sampler(), expected)
        assert witness.take() == PATTERNS[interval]
    assert engine.stats.pattern == PATTERNS[interval]


@pytest.mark.parametrize("branch", BRANCHES)
def test_disable_restores_the_unet(branch):
    sampler = _sampler()
    plain = sampler()

    def everything():
        return {module: dict(vars(module)) for module in sampler.unet.modules()}

    before = everything()
    helper = DeepCacheSDHelper(sampler)
    helper.set_params(cache_interval=3, cache_branch_id=branch)
    helper.enable()
    assert not _same(sampler(), plain)
    helper.disable()
    assert everything() == before
    assert _same(sampler(), plain)


@pytest.mark.parametrize("branch", BRANCHES)
def test_cost_and_memory_are_counted(branch):
    sampler = _sampler()
    engine = apply_deepcache(sampler, DeepCacheConfig(3, branch, forecast="none"))
    sampler()
    unet = sampler.unet
    with FlopCounterMode(display=False) as full:
        _, deep = _by_hand(unet, 0, branch)
    with FlopCounterMode(display=False) as shallow:
        _by_hand(unet, 0, branch, deep)
    whole = 5 * full.get_total_flops()
    spent = 2 * full.get_total_flops() + 3 * shallow.get_total_flops()
    assert 0 < spent < whole
    assert engine.stats.mac_share == pytest.approx(spent / whole)
    assert engine.stats.bytes_kept == deep.nbytes


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("kind", [float, torch.tensor, lambda level: torch.tensor([level])])
def test_noise_levels_without_a_scheduler(kind, keyword):
    sampler = _sampler()
    # The first three could be any values, and the next is full by the schedule.
    expected = _run_by_hand(sampler.unet, 4, "FFFF.")
    engine = apply_deepcache(SimpleNamespace(unet=sampler.unet), DeepCacheConfig(3, 4, forecast="none"))
    for _ in range(2):
        outputs = []
        for step, level in enumerate(LEVELS):
            with torch.no_grad():
                if keyword:
                    output = sampler.unet(text=TEXT, noise_level=kind(level), film=_film(step))
                else:
                    output = sampler.unet(_film(step), kind(level), TEXT)
            outputs.append(output)
        assert _same(outputs, expected)
        assert engine.stats.pattern == "FFFF."


def test_branch_too_deep_is_refused_with_the_allowed_range():
    with pytest.raises(ValueError, match="cache_branch_id must be between 0 and 8 for this ForeignUNet, got 9"):
        apply_deepcache(_sampler(), DeepCacheConfig(3, 9))


def _without_mid_block(unet: Any) -> None:
    del unet.mid_block


def _with_lists_of_several_lengths(unet: Any) -> None:
    unet.down_blocks[2].motions = unet.down_blocks[2].motions[:1]


def _with_a_layer_too_few(unet: Any) -> None:
    block = unet.up_blocks[1]
    block.motions, block.convolutions = block.motions[:3], block.convolutions[:3]


def _with_a_plain_list_of_blocks(unet: Any) -> None:
    blocks = list(unet.up_blocks)
    del unet.up_blocks
    unet.up_blocks = blocks


def _with_a_block_without_lists(unet: Any) -> None:
    unet.down_blocks[2] = nn.Identity()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without_mid_block, "it has no 'mid_block'"),
        (
            _with_lists_of_several_lengths,
            r"the lists of layers of down_blocks.2 differ in length \(convolutions 2, motions 1\)",
        ),
        (_with_a_layer_too_few, "its down path makes 9 skip connections, one per layer, and its up path takes 8"),
        (_with_a_plain_list_of_blocks, "it has no nn.ModuleList 'up_blocks'"),
        (_with_a_block_without_lists, "down_blocks.2 has no list of layers"),
    ],
)
def test_other_structures_are_refused_with_the_reason(change, reason):
    sampler = _sampler()
    change(sampler.unet)
    with pytest.raises(TypeError, match=f"DeepCache cannot cut a ForeignUNet: {reason}"):
        DeepCacheSDHelper(sampler).enable()
    assert not sampler.unet._forward_hooks
    assert type(sampler) is Sampler
