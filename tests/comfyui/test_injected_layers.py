"""Layers that another node adds to the model for a run, as AnimateDiff-Evolved does."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.comfyui_engine.nodes import pattern, with_deepcache
from tests.comfyui.stand_in import model, sample


class _Motion(nn.Module):
    """Adds the mean of all frames to each frame."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.mean(0, keepdim=True) / 4


def _with_motion(patcher: Any) -> Any:
    changed = patcher.clone()

    def around(executor: Any, *args: Any, **kwargs: Any) -> Any:
        unet = patcher.model.diffusion_model
        blocks = [*unet.input_blocks, unet.middle_block, *unet.output_blocks]
        for block in blocks:
            block.append(_Motion())
        try:
            return executor(*args, **kwargs)
        finally:
            for block in blocks:
                del block[-1]

    changed.add_wrapper_with_key("outer_sample", "motion", around)
    return changed


@pytest.mark.parametrize("deepcache_first", [False, True])
@pytest.mark.parametrize("branch", range(6))
def test_added_layers_run_and_are_cached(branch, deepcache_first):
    patcher, run = model(), partial(sample, sampler="repeat", steps=6, batch=2)
    expected = run(_with_motion(patcher))
    assert not torch.equal(run(patcher), expected)
    if deepcache_first:
        changed = _with_motion(with_deepcache(patcher, branch=branch))
    else:
        changed = with_deepcache(_with_motion(patcher), branch=branch)
    for _ in range(2):
        assert torch.equal(run(changed), expected)
        assert pattern(changed) == "F..F.."
    # After the run, no trace of the layers remains.
    assert torch.equal(run(with_deepcache(patcher, branch=branch)), run(patcher))
