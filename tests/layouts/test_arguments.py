"""The arguments of a shallow step, and modules that are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.harness.denoiser_families import FAMILIES, denoiser_of, random
from benchmarks.harness.ldm_unet import TEXT, LayerByLayerUNet, LdmUNet
from DeepCache import DeepCacheConfig, apply_deepcache, register_layout, remove_deepcache
from DeepCache.engine.layouts import layout_of, skip_branches
from tests.compatibility.components import seeded

TEXTS = random(2, 5, TEXT, seed=80)
COMFYUI = next(family for family in FAMILIES if family.name == "ComfyUI")


def _full_and_shallow(denoiser, branch, call):
    """The same step as a full one and as a shallow one on its deep feature."""
    apply_deepcache(denoiser, DeepCacheConfig(2, branch, forecast="none"))
    with torch.no_grad():
        found = [call(t) for t in torch.full((2,), 0.5)]
    remove_deepcache(denoiser)
    return found


def _control(name):
    """ControlNet's residuals as ComfyUI may pass them."""
    control = COMFYUI.control()["control"]
    changed = {
        "shorter": {"output": control["output"][: -len(control["output"]) // 2]},
        "some missing": {"output": [None if number % 2 else each for number, each in enumerate(control["output"])]},
        "none for the output": {"output": None},
        "none for the middle": {"middle": []},
    }
    return {**control, **changed[name]}


def _call(denoiser, kind):
    """Calls a U-Net of one size with residuals."""

    def call(t):
        control = {
            name: [None if each is None else random(2, 8, 8, 8, seed=number) for number, each in enumerate(residuals)]
            for name, residuals in _control(kind).items()
            if residuals is not None
        }
        return denoiser(random(2, 4, 8, 8), t, TEXTS, control=control)

    return call


@pytest.mark.parametrize("kind", ["shorter", "some missing", "none for the output", "none for the middle"])
@pytest.mark.parametrize("branch", [0, 3, 8])
def test_residuals_of_any_number_go_to_their_layers(kind, branch):
    denoiser = seeded(_OfOneSize)
    full, shallow = _full_and_shallow(denoiser, branch, _call(denoiser, kind))
    assert torch.equal(full, shallow)


@pytest.mark.parametrize("branch", [0, 7])
def test_a_unet_without_a_middle_block_is_cut_at_its_skips(branch):
    denoiser = seeded(_OfOneSize)
    denoiser.middle_block = None
    assert len(skip_branches(denoiser)) == 8
    full, shallow = _full_and_shallow(denoiser, branch, _call(denoiser, "some missing"))
    assert torch.equal(full, shallow)


class _OfOneSize(LayerByLayerUNet):
    """Ten input blocks of one width and size, so that a residual in the wrong place raises no error."""

    def __init__(self):
        super().__init__(levels=(1,), resnets=8)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.control is not None], ids=lambda f: f.name)
def test_positional_residuals_are_cut_too(family):
    denoiser = denoiser_of(family)
    names = layout_of(denoiser)._named

    def call(t):
        named = {**family.conditions(), **family.control()}
        named.pop("return_dict", None)
        last = max(names.index(name) for name in named)
        args = [named.get(name) for name in names[2 : last + 1]]
        output = denoiser(random(*family.shape), family.timestep(t), *args)
        return output if isinstance(output, torch.Tensor) else output[0]

    for branch in range(family.branches):
        full, shallow = _full_and_shallow(denoiser, branch, call)
        assert torch.equal(full, shallow)


def test_a_layer_replaced_within_a_block_is_used_at_the_next_run():
    denoiser = seeded(LayerByLayerUNet)
    apply_deepcache(denoiser, DeepCacheConfig(2, 3, forecast="none"))

    def run():
        with torch.no_grad():
            return [denoiser(random(2, 4, 8, 8), t, TEXTS) for t in torch.full((2,), 0.5)]

    run()
    block = denoiser.output_blocks[5]
    block[-1] = seeded(lambda: type(block[-1])(block[-1].conv.out_channels), seed=5)
    full, shallow = run()
    assert torch.equal(full, shallow)


def test_a_list_beside_the_blocks_is_refused():
    class Scaled(LdmUNet):
        def __init__(self):
            super().__init__()
            self.scales = nn.ModuleList(nn.Identity() for _ in self.output_blocks)

    with pytest.raises(TypeError, match="cannot cut a Scaled: 'scales' has as many modules as 'input_blocks'"):
        apply_deepcache(Scaled())


def test_a_denoiser_without_a_timestep_is_refused():
    class Untimed(LdmUNet):
        def forward(self, x):
            return x

    class Anything(LdmUNet):
        def forward(self, x, **others):
            return super().forward(x, others["timestep"], TEXTS)

    with pytest.raises(TypeError, match="called with a sample and a timestep; Untimed is not"):
        apply_deepcache(Untimed())
    denoiser = seeded(Anything)
    full, shallow = _full_and_shallow(denoiser, 2, lambda t: denoiser(random(2, 4, 8, 8), timestep=t))
    assert torch.equal(full, shallow)


def test_only_a_layout_can_be_registered():
    with pytest.raises(TypeError, match="register_layout takes a subclass of Layout, got 3"):
        register_layout(3)


def test_a_module_without_skip_connections_is_refused_with_a_suggestion():
    with pytest.raises(TypeError, match=r"cannot cut a Linear: it has no skip connections .* \(enable_cache\)"):
        apply_deepcache(nn.Linear(2, 2))
